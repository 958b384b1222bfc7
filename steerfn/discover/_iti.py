"""Inference-Time Intervention: the attention heads in which a probe reads the behaviour best."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from steerfn.datasets import Texts, describe_texts, divide, reason_against
from steerfn.discover._engine import FOLDS, DiscoveryOptions, Kept, RowPair, discover, logistic
from steerfn.model import Layout, Model, Tokenizer, layout, unwrap_model
from steerfn.values import (
    DataError,
    Site,
    SteeringVector,
    as_sites,
    finite_number,
    integer,
    public,
    replace,
    static,
    struct,
    unit,
)


@struct
class Heads(Kept):
    """See `iti`: the shift of one head, and how well a probe reads the head."""

    l2: float = static(default=1.0)
    seed: int = static(default=0)
    texts: Texts | None = static(default=None)
    name: ClassVar[str] = "iti"

    def with_texts(self, texts: Texts) -> "Heads":
        for side, count in (("positive", texts.positive), ("negative", len(texts.units) - texts.positive)):
            if count < 2:
                raise DataError(
                    f"{side} has one text; a probe's accuracy on held-out texts takes at least two on a side."
                )
        return replace(self, texts=texts)

    def finalize(self, state: RowPair) -> Tensor:
        rows = state.sort()
        positive, negative = rows.positive.values, rows.negative.values
        theta = unit(positive.mean(0) - negative.mean(0))
        return theta * (torch.cat([positive, negative]) @ theta).std(correction=0)

    def outcome(self, state: RowPair) -> tuple[Tensor, dict[str, Any]]:
        rows = state.sort()
        accuracy, loss = held_out_probe(rows.positive.values, rows.negative.values, self.l2, self.seed, self.texts)
        return self.finalize(state), {"accuracy": accuracy, "log_loss": loss}

    def about(self) -> dict[str, Any]:
        return {"l2": self.l2, "seed": self.seed}


def held_out_probe(
    positive: Tensor, negative: Tensor, l2: float, seed: int, texts: Texts | None = None
) -> tuple[float, float]:
    """The accuracy and the mean log loss of logistic probes, each on the fold that it was fitted without.

    Raises:
        DataError: texts of which no fold can be held out so that the accuracy says something.
    """
    sides = positive, negative
    counts = len(positive), len(negative)
    texts = describe_texts(counts) if texts is None else texts
    fold = divide(texts, max(1, min(FOLDS, *texts.sides)), seed)
    if reason := reason_against(texts, fold):
        raise DataError(
            "heads are chosen by the accuracy of probes on held-out texts, which is not informative here: "
            f"{reason}; pass more texts."
        )
    folds = torch.from_numpy(fold).split(counts)
    margins = [torch.zeros(n, dtype=torch.float64) for n in counts]
    for one in range(int(fold.max()) + 1):
        out = [of == one for of in folds]
        weights, bias = logistic(positive[~out[0]], negative[~out[1]], l2)
        for side, which, margin, sign in zip(sides, out, margins, (1.0, -1.0), strict=True):
            margin[which] = sign * (side[which] @ weights + bias)
    joined = torch.cat(margins)
    return float((joined > 0).double().mean()), float(torch.nn.functional.softplus(-joined).mean())


@public
def iti(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any = None,
    *,
    layers: Any = None,
    k: int = 48,
    l2: float = 1.0,
    **options: Unpack[DiscoveryOptions],
) -> SteeringVector:
    """Inference-Time Intervention: `v = sigma theta` in the `k` heads whose probes tell the sides apart best.

    At the input slice of every head (`head_out[layer, head]`) a logistic regression is fitted and its accuracy taken on
    texts that it was fitted without (at most five folds; the two texts of a pair are in one, and so are those of a
    group with `groups=`; folds are stratified by the token that is read, as in `quality`). The `k` heads with the
    highest accuracy are chosen; among equal ones, those with the lower held-out log loss. There `theta` is the unit
    mean difference and `sigma` the standard deviation of all activations along it, so alpha counts standard deviations
    (the paper uses 15 on LLaMA-7B): `sf.steer(model, v, alpha=15)`.

    Args:
        model: any transformers causal LM with attention heads. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: texts that show its opposite. As many as the positives, they are taken for pairs in making folds.
        layers: an int, a slice, a range or a list of ints; default every block that has attention heads.
        k: how many heads.
        l2: the probes' penalty, `l2/2 |w|^2`.
        options: what every method takes, see `DiscoveryOptions`; `seed` draws the folds, and `groups` keeps the
            answers of one question together: on TruthfulQA a probe is right 0.80 of the time by text, 0.69 by question.

    Returns:
        A vector in float32 at `k` `head_out` sites, in units of the heads' outputs. Its metadata has `accuracy` and
        `log_loss` of every head that was tried, by the site's name.

    Raises:
        DataError: more heads than there are, fewer than two texts on a side, an empty one, an `l2` that is no number
            above 0, or a position outside a text.
        SiteError: a layer without attention heads.

    Source: Li et al. 2023, "Inference-Time Intervention: Eliciting Truthful Answers from a Language Model".

    Example:
        >>> import steerfn as sf
        >>> true, false = ["Ice is cold.", "Two is even."], ["Ice is hot.", "Two is odd."]
        >>> v = sf.discover.iti(model, tokenizer, true, false, layers=[14, 15], k=3)
        >>> len(v.sites), v.sites[0].kind
        (3, 'head_out')
        >>> with sf.steer(model, v, alpha=15, scope=sf.generated):
        ...     ids = model.generate(**inputs, max_new_tokens=5)
    """
    l2 = finite_number("l2", l2, above=0, hint="the penalty is l2/2 |w|^2")
    heads = _heads(layout(unwrap_model(model)), layers)
    k = integer("k", k, 1, len(heads), hint=f"there are {len(heads)} heads")
    method = Heads(l2=l2, seed=options.get("seed", 0))
    v = discover(method, model, tokenizer, positive, negative, heads, **options)
    accuracy, loss = v.metadata["accuracy"], v.metadata["log_loss"]
    ranked = sorted(v.sites, key=lambda site: (-accuracy[site.name], loss[site.name]))
    return v.select(sorted(ranked[:k], key=v.sites.index)).with_metadata(k=k, heads=len(heads))


def _heads(model_layout: Layout, layers: Any) -> list[Site]:
    """Every head of some blocks, in order; by default of all blocks that have heads."""
    if layers is None:
        chosen = [layer for layer, block in enumerate(model_layout.blocks) if "head_out" in block.kinds] or [0]
    else:
        chosen = [site.block for site in model_layout.resolve(as_sites(layers))]
    sites = [Site("head_out", layer, head) for layer in chosen for head in range(model_layout.blocks[layer].heads or 1)]
    return list(model_layout.resolve(tuple(sites)))  # which says what a block without heads has instead
