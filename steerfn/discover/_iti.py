"""Inference-Time Intervention: the attention heads in which a probe reads the behaviour best."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from steerfn._blocks import Layout, unwrapped
from steerfn._errors import DataError
from steerfn._layout import layout
from steerfn._numbers import plain_number
from steerfn._site import Site, as_sites
from steerfn._struct import static, struct
from steerfn._text import as_texts
from steerfn._vector import SteeringVector, unit
from steerfn.discover.engine._discover import Options, discover
from steerfn.discover.engine._kept import Kept, Pair
from steerfn.discover.engine._logistic import logistic
from steerfn.discover.engine._quality import FOLDS, folds_of


@struct
class Heads(Kept):
    """See `iti`: the shift of one head, and how well a probe reads the head."""

    l2: float = static(default=1.0)
    seed: int = static(default=0)
    name: ClassVar[str] = "iti"

    def finalize(self, state: Pair) -> Tensor:
        rows = state.ordered()
        positive, negative = rows.positive.values, rows.negative.values
        theta = unit(positive.mean(0) - negative.mean(0))
        return theta * (torch.cat([positive, negative]) @ theta).std(correction=0)

    def outcome(self, state: Pair) -> tuple[Tensor, dict[str, Any]]:
        rows = state.ordered()
        accuracy, loss = held_out_probe(rows.positive.values, rows.negative.values, self.l2, self.seed)
        return self.finalize(state), {"accuracy": accuracy, "log_loss": loss}

    def about(self) -> dict[str, Any]:
        return {"l2": self.l2, "seed": self.seed}


def held_out_probe(positive: Tensor, negative: Tensor, l2: float, seed: int) -> tuple[float, float]:
    """The accuracy and the mean log loss of logistic probes, each on the fold that it was fitted without."""
    sides = positive, negative
    counts = len(positive), len(negative)
    folds = folds_of(counts, min(FOLDS, *counts), seed)
    margins = [torch.zeros(n, dtype=torch.float64) for n in counts]
    for fold in range(int(folds[0].max()) + 1):
        out = [of == fold for of in folds]
        weights, bias = logistic(positive[~out[0]], negative[~out[1]], l2)
        for side, which, margin, sign in zip(sides, out, margins, (1.0, -1.0), strict=True):
            margin[which] = sign * (side[which] @ weights + bias)
    joined = torch.cat(margins)
    return float((joined > 0).double().mean()), float(torch.nn.functional.softplus(-joined).mean())


def iti(
    model: Any,
    tokenizer: Any,
    positive: Any,
    negative: Any,
    *,
    layers: Any = None,
    k: int = 48,
    l2: float = 1.0,
    **options: Unpack[Options],
) -> SteeringVector:
    """Inference-Time Intervention: `v = sigma theta` in the `k` heads whose probes tell the sides apart best.

    At the input slice of every head (`head_out[layer, head]`) a logistic regression is fitted and its accuracy taken
    on texts that it was fitted without (at most five folds, the two texts of a pair in one). The `k` heads with the
    highest accuracy are chosen; among equal ones, those with the lower held-out log loss. There `theta` is the unit
    mean difference and `sigma` the standard deviation of all activations along it, so alpha counts standard
    deviations (the paper uses 15 on LLaMA-7B): `sf.steer(model, v, alpha=15)`.

    Args:
        model: any transformers causal LM with attention heads. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour.
        negative: texts that show its opposite. As many as the positives, they are taken for pairs in making folds.
        layers: an int, a slice, a range or a list of ints; default every block that has attention heads.
        k: how many heads.
        l2: the probes' penalty, `l2/2 |w|^2`.
        options: what every method takes, see `Options`; `seed` draws the folds.

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
        >>> v = sf.iti(model, tokenizer, positive=true, negative=false, k=48)  # doctest: +SKIP
        >>> with sf.steer(model, v, alpha=15, scope=sf.generated):  # doctest: +SKIP
        ...     model.generate(**inputs)
    """
    l2 = plain_number(l2)
    if isinstance(l2, bool) or not isinstance(l2, (int, float)) or not 0 < l2 < math.inf:
        raise DataError(f"l2 is a number above 0 (the penalty l2/2 |w|^2), not {l2!r}.")
    found = _heads(layout(unwrapped(model)), layers)
    k = plain_number(k)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(found):
        raise DataError(f"k is a number of heads from 1 to {len(found)}, as many as there are, not {k!r}.")
    sides = {"positive": as_texts(positive, "positive"), "negative": as_texts(negative, "negative")}
    for name, side in sides.items():
        if len(side) < 2:
            raise DataError(f"{name} has one text; a probe's accuracy on held-out texts takes at least two on a side.")
    method = Heads(l2=l2, seed=options.get("seed", 0))
    v = discover(method, model, tokenizer, *sides.values(), sites=found, **options)
    accuracy, loss = v.metadata["accuracy"], v.metadata["log_loss"]
    ranked = sorted(v.sites, key=lambda site: (-accuracy[site.name], loss[site.name]))
    return v.select(sorted(ranked[:k], key=v.sites.index)).with_metadata(k=k, heads=len(found))


def _heads(found: Layout, layers: Any) -> list[Site]:
    """Every head of some blocks, in order; by default of all blocks that have heads."""
    if layers is None:
        chosen = [layer for layer, block in enumerate(found.blocks) if "head_out" in block.kinds] or [0]
    else:
        chosen = [site.block for site in found.resolve(as_sites(layers))]
    sites = [Site("head_out", layer, head) for layer in chosen for head in range(found.blocks[layer].heads or 1)]
    return list(found.resolve(tuple(sites)))  # which says what a block without heads has instead
