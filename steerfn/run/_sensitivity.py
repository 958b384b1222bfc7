"""Sensitivity: how log-probabilities answer to a vector at every layer, from one pass and before any sweep."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerfn.model import Layout, Model, Tokenizer, layout, unwrap_model
from steerfn.operators import Scope, as_scope, as_vector
from steerfn.output import Result, Section, Table, bar, format_or_dash, progress_bar, quantity
from steerfn.run._budget import Budget, limit_of
from steerfn.run._chat_template import Chat, checked_chat
from steerfn.run._predict import Predictor
from steerfn.run._slopes import SlopeItem, Slopes
from steerfn.run._text import as_texts, encode_continuations
from steerfn.values import (
    DataError,
    ShapeError,
    Site,
    SiteError,
    Sites,
    SteeringVector,
    as_sites,
    public,
    replace,
    static,
    struct,
)
from steerfn.verbs import check_vector

TOKENS = 512, 2048
"""Tokens of an automatic batch, on the CPU and elsewhere: the states of all of them are kept for the way back."""
MODES = ("reverse", "forward")
ORDERS = ("magnitude", "mean")


@struct
class Sensitivity(Result):
    """The slope in alpha, at alpha = 0, of what some prompts predict; see `sensitivity`. Iterates over `.table`.

    Attributes:
        values: the slope at each site for each prompt, in nats per unit of alpha, float64.
        baseline: what is differentiated, of the unsteered model, in nats, float64.
        sites: in the order of a forward pass.
        quantity: what is differentiated, in words.
        scope: the tokens steered, None for all.
    """

    values: Float[Tensor, "sites prompts"]
    baseline: Float[Tensor, " prompts"]
    sites: tuple[Site, ...] = static()
    quantity: str = static()
    scope: str | None = static(default=None)

    _title = "Sensitivity"
    _what = "The slopes"
    _index = "site"

    @property
    def table(self) -> tuple[tuple[Site, float, float | None], ...]:
        """(site, mean over prompts, standard error of it), in the order of a forward pass; no error for one prompt."""
        count = self.values.shape[1]
        means = self.values.mean(1).tolist()
        errors = (self.values.std(1) / math.sqrt(count)).tolist() if count > 1 else [None] * len(means)
        return tuple(zip(self.sites, means, errors, strict=True))

    def __iter__(self) -> Iterator[tuple[Site, float, float | None]]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, site: Any) -> Tensor:
        """The slope of each prompt at a site (an int means `resid_post`)."""
        [wanted, *more] = as_sites(site)
        if more or wanted not in self.sites:
            raise SiteError(f"There is no slope at {site}; it has {_list_sites(self.sites)}.")
        return self.values[self.sites.index(wanted)].clone()

    def ranking(self, by: str = "magnitude") -> tuple[Site, ...]:
        """The sites, the most sensitive first; of equals, the one that comes first in a forward pass.

        Args:
            by: "magnitude" of the mean, whatever its sign, or "mean": those that raise the quantity most.

        Raises:
            DataError: another name.
        """
        if by not in ORDERS:
            raise DataError(f"Sites are ranked by 'magnitude' or by 'mean', not by {by!r}.")
        rows = sorted(self.table, key=lambda row: -(abs(row[1]) if by == "magnitude" else row[1]))
        return tuple(site for site, _, _ in rows)

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each site, in the order of a forward pass."""
        return [
            {"site": site.name, "layer": site.block, "mean": mean, "standard_error": error}
            for site, mean, error in self.table
        ]

    def _facts(self) -> dict[str, Any]:
        by_site = {
            site.name: {"mean": mean, "standard_error": error, "values": values}
            for (site, mean, error), values in zip(self.table, self.values.tolist(), strict=True)
        }
        about = {"quantity": self.quantity, "scope": self.scope, "baseline": self.baseline.tolist()}
        return {**about, "sites": by_site}

    def _sections(self) -> Sequence[Section]:
        strongest, largest = self.ranking()[0], max(abs(mean) for _, mean, _ in self.table)
        caption = f"d {self.quantity} / d alpha at alpha = 0, {quantity(self.values.shape[1], 'prompt')}"
        rows = []
        for site, mean, error in self.table:
            share = abs(mean) / largest if largest else 0.0
            mark = "<- strongest" if site == strongest else ""
            rows.append([site.name, bar((1 + share) / 2), f"{mean:+.4g}", format_or_dash(error, ".2g"), mark])
        caption = caption if self.scope is None else f"{caption}, scope {self.scope}"
        return [Table(["site", "magnitude", "mean", "std. error", ""], rows, caption, numeric=(2, 3))]

    def __repr__(self) -> str:
        top = self.ranking()[0]
        mean = next(mean for site, mean, _ in self.table if site == top)
        return (
            f"Sensitivity({len(self)} sites, {quantity(self.values.shape[1], 'prompt')}, strongest {top}: {mean:+.4g})"
        )


@public
def sensitivity(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    prompts: Any,
    targets: Any,
    *,
    sites: Sites | None = None,
    scope: Scope | None = None,
    chat: Chat = None,
    mode: str = "reverse",
    batch_size: int | str = "auto",
    progress: bool = True,
) -> Sensitivity:
    """How fast the log-probability of a target rises with the strength of a vector, at every site from one pass.

    `s_L = d/d alpha log p(target | prompt; add(v, alpha) at L alone)` at `alpha = 0`, that is `sum_t <g_L(t), v_L>`
    over the steered tokens, with `g_L` the gradient of the log-probability with respect to the state at site L. For a
    pair of targets it is the slope of `log p(positive) - log p(negative)`. The log-probability of a target of several
    tokens is the sum over them, each given those before it.

    It is what an infinitely weak vector does: it ranks sites before a sweep, and does not say how far the slope holds.
    It is per unit of alpha, so a vector that is twice as long has twice the slope; `v.unit()` compares directions.

    Args:
        model: any transformers causal LM, in eval mode. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vector: a vector with a direction at several sites, each taken alone; or with one, which is tried at every site.
        prompts: texts or conversations.
        targets: what follows: a text or a pair `(positive, negative)` as a tuple, for all prompts; or a list with a
            text or a pair for each prompt. Taken literally: in plain text a target begins with its space.
        sites: one or several; an int means `resid_post`. Default: the sites of `vector`; where it has a single
            direction, that site in every layer.
        scope: the tokens to steer, as in `at`; the target counts as generated. Default: all.
        chat: True puts prompts into the chat template; None does so where there is one. Conversations always are.
        mode: "reverse": one forward and one backward pass for all sites and prompts of a batch, whatever their
            number; the states of the batch are kept in between. "forward": `torch.func.jvp`, vmapped over the sites:
            one forward pass, which carries a tangent for every site from that site up and keeps nothing. The numbers
            are the same. Reverse is faster from a few sites on, and works where operations lack a forward-mode rule.
        batch_size: prompts at once; "auto" batches by tokens and halves when memory runs out.
        progress: show a progress bar on stderr.

    Returns:
        The slopes: print them, `.ranking()`, `.values` by site and prompt, `.to_pandas()`, `.to_json()`. In a model in
        half precision they are as coarse as its logits.

    Raises:
        DataError: no prompts, targets that do not match them, an option out of its range, a vector of zero, or a slope
            that is not a number.
        SiteError: a site that the model or the vector lacks.
        ShapeError: a direction of another width than the state at its site.
        ModelError: a model that the mode cannot differentiate.

    Source: the first-order effect of attribution patching (Nanda 2023; Syed et al. 2023), for a steering vector.

    Example:
        >>> import steerfn as sf
        >>> slopes = sf.sensitivity(model, tokenizer, v, ["The film was"], (" great", " awful"))
        >>> strongest = slopes.ranking()[0]
        >>> 8 < strongest.layer < 22
        True
    """
    vector = as_vector(vector, "sensitivity")
    if mode not in MODES:
        raise DataError(f"mode is 'reverse' or 'forward', not {mode!r}.")
    checked_chat(chat)
    limit_of(batch_size)
    scope = None if scope is None else as_scope(scope)
    if not any(vector.magnitude.values()):
        raise DataError("The vector is zero at all its sites, so no strength changes anything; pass another vector.")
    root = unwrap_model(model)
    if "model" in vector.metadata:
        vector = check_vector(vector, root)
    items, paired = _items(tokenizer, as_texts(prompts, "prompts"), targets, chat)
    with torch.inference_mode(False):  # what is made in it can never be differentiated
        placed = _directions_at(vector, sites, layout(root))
        parts = tuple(placed.select(site) for site in placed.sites)
        slopes = Slopes(Predictor.of(model, tokenizer), parts, scope, torch.promote_types(vector.dtype, torch.float32))
        budget = Budget.of(batch_size, slopes.predict.device, TOKENS)
        values, baseline = _run(slopes, items, mode, budget, progress)
    if not bool(torch.isfinite(values).all()):
        site, prompt = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise DataError(
            f"The slope at {placed.sites[site]} for prompts[{prompt}] is {float(values[site, prompt])}; load the model "
            "in float32, or leave the prompt out."
        )
    quantity = "(log p(positive) - log p(negative))" if paired else "log p(target)"
    return Sensitivity(values, baseline, placed.sites, quantity, None if scope is None else repr(scope))


def _directions_at(v: SteeringVector, sites: Any, layout: Layout) -> SteeringVector:
    """The directions to differentiate along, in the order of a forward pass."""
    v = v.resolve(layout.n_layers)
    own = layout.resolve(v.sites)
    if sites is not None:
        where = layout.resolve(as_sites(sites))
    else:
        where = own if len(own) > 1 else _in_every_layer(v.sites[0], layout)
    lacking = [] if len(own) == 1 else [site for site in where if site not in own]
    if lacking:
        raise SiteError(
            f"This vector has no direction at {lacking[0]}; it has {_list_sites(own)}. Pass sites among these, or a "
            "vector with one direction, v.select(site), which can be tried anywhere."
        )
    directions = {site: v._directions[0 if len(own) == 1 else own.index(site)] for site in where}
    for site, direction in directions.items():
        if direction.shape[-1] != layout.width(site):
            raise ShapeError(
                f"The direction has width {direction.shape[-1]}, but {layout.model} has width {layout.width(site)} at "
                f"{site}; pass sites of the width that the vector was made at ({v.sites[0]})."
            )
    ordered = sorted(directions, key=lambda site: site.order)
    held = tuple(directions[site].detach().clone() for site in ordered)
    return replace(v, sites=tuple(ordered), _directions=held)


def _in_every_layer(site: Site, layout: Layout) -> tuple[Site, ...]:
    """The same site in every block that has it, as wide."""
    there = (
        Site(site.kind, layer, site.head)
        for layer, block in enumerate(layout.blocks)
        if site.kind in block.kinds and (site.head is None or site.head < block.heads)
    )
    return tuple(each for each in there if layout.width(each) == layout.width(site))


def _items(tokenizer: Any, prompts: Sequence[Any], targets: Any, chat: Chat) -> tuple[list[SlopeItem], bool]:
    """The items to run for each prompt, and whether targets are pairs."""
    if isinstance(targets, (str, tuple)):
        by_prompt: list[Any] = [targets] * len(prompts)
    elif isinstance(targets, Sequence):
        by_prompt = list(targets)
    else:
        raise DataError(
            f"targets is a text, a pair (positive, negative), or a list of these, not a {type(targets).__name__}."
        )
    if len(by_prompt) != len(prompts):
        raise DataError(
            f"There are {len(by_prompt)} targets for {quantity(len(prompts), 'prompt')}; pass one for each, or one "
            "text or pair (a tuple) for all."
        )
    sides = [(each,) if isinstance(each, str) else each for each in by_prompt]
    for i, each in enumerate(sides):
        if not isinstance(each, (tuple, list)) or not all(isinstance(text, str) for text in each):
            raise DataError(
                f"targets[{i}] is {by_prompt[i]!r:.80}; pass a text, or a pair of texts (positive, negative)."
            )
        if len(each) != (1 if isinstance(by_prompt[i], str) else 2):
            raise DataError(f"targets[{i}] has {len(each)} texts; a pair is (positive, negative).")
        if len(each) != len(sides[0]):
            raise DataError(
                f"targets[0] is {by_prompt[0]!r:.60} and targets[{i}] is {by_prompt[i]!r:.60}; pass texts or pairs, "
                "not both, since their slopes have no common mean."
            )
    items = []
    encoded = encode_continuations(tokenizer, prompts, sides, chat, "prompts")
    for i, (texts, pair) in enumerate(zip(sides, encoded, strict=True)):
        if len(pair) == 2 and pair[0] == pair[1]:
            raise DataError(f"targets[{i}] sets {texts[0]!r:.60} against itself; pass two texts that differ.")
        items.append(SlopeItem.of(pair))
    return items, len(sides[0]) == 2


def _run(
    slopes: Slopes, items: Sequence[SlopeItem], mode: str, budget: Budget, progress: bool
) -> tuple[Tensor, Tensor]:
    """Slopes `[sites, prompts]` and what is differentiated `[prompts]`, in float64 on the CPU; the longest first."""
    order = sorted(range(len(items)), key=lambda i: -items[i].longest)
    values = torch.zeros(len(slopes.parts), len(items), dtype=torch.float64)
    baseline = torch.zeros(len(items), dtype=torch.float64)
    rows = max(len(item.rows) for item in items)
    differentiate = slopes.reverse if mode == "reverse" else slopes.forward
    batches = budget.run(
        order, lambda chosen: differentiate([items[i] for i in chosen]), lambda i: rows * items[i].longest
    )
    with progress_bar("Differentiating", "prompt", progress, total=len(items)) as shown:
        for chosen, (predicted, slope) in batches:
            values[:, chosen], baseline[chosen] = slope.double().cpu(), predicted.double().cpu()
            shown.update(len(chosen))
    return values, baseline


def _list_sites(sites: Sequence[Site]) -> str:
    return ", ".join(map(str, sites[:8])) + (f", ... ({len(sites)} sites)" if len(sites) > 8 else "")
