"""Sensitivity: how log-probabilities answer to a vector at every layer, from one pass and before any sweep."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerfn._blocks import Layout, unwrapped
from steerfn._continuation import continued
from steerfn._dataframe import dataframe
from steerfn._errors import DataError, ShapeError, SiteError
from steerfn._fingerprint import check_match
from steerfn._layout import layout
from steerfn._metadata import Metadata
from steerfn._numbers import plain_number
from steerfn._sensitivity_slopes import Item, Slopes
from steerfn._site import Site, as_sites
from steerfn._struct import replace, static, struct
from steerfn._text import as_texts
from steerfn._vector import SteeringVector
from steerfn.discover._profile import bar
from steerfn.discover.engine._quality import number
from steerfn.discover.search._predict import Predictor
from steerfn.operators import Scope
from steerfn.operators._base import as_vector
from steerfn.operators._scope import as_scope

TOKENS = {"cpu": 512}
"""Tokens, padding included, that `batch_size="auto"` puts into one batch, by device: the states of all of them are
kept for the way back."""
TOKENS_ELSEWHERE = 2048
MODES = ("reverse", "forward")
ORDERS = ("magnitude", "mean")


@struct
class Sensitivity:
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
            raise SiteError(f"There is no slope at {site}; it has {_shown(self.sites)}.")
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

    def to_json(self) -> str:
        """Everything as JSON: quantity, scope, baseline, and by site mean, standard error and values."""
        by_site = {
            site.name: {"mean": mean, "standard_error": error, "values": values}
            for (site, mean, error), values in zip(self.table, self.values.tolist(), strict=True)
        }
        about = {"quantity": self.quantity, "scope": self.scope, "baseline": self.baseline.tolist()}
        return json.dumps({**about, "sites": by_site}, indent=2)

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame, one row for each site.

        Raises:
            DataError: pandas is not installed.
        """
        rows = [
            {"site": site.name, "layer": site.block, "mean": mean, "standard_error": error}
            for site, mean, error in self.table
        ]
        return dataframe(rows).set_index("site")

    def __str__(self) -> str:
        strongest, wide = self.ranking()[0], max(len(site.name) for site in self.sites)
        largest = max(abs(mean) for _, mean, _ in self.table)
        about = f"d {self.quantity} / d alpha at alpha = 0, {_count(self.values.shape[1])}"
        lines = [
            about if self.scope is None else f"{about}, scope {self.scope}",
            f"{'site':<{wide}}        mean  std. error  {'magnitude':<20}",
        ]
        for site, mean, error in self.table:
            share = abs(mean) / largest if largest else 0.0
            lines.append(
                f"{site.name:<{wide}}  {mean:>+10.4g}  {number(error, '.2g'):>10}  {bar((1 + share) / 2)}"
                f"{'  <- strongest' if site == strongest else ''}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        top = self.ranking()[0]
        mean = next(mean for site, mean, _ in self.table if site == top)
        return f"Sensitivity({len(self)} sites, {_count(self.values.shape[1])}, strongest {top}: {mean:+.4g})"


def sensitivity(
    model: Any,
    tokenizer: Any,
    v: SteeringVector,
    prompts: Any,
    targets: Any,
    *,
    sites: Any = None,
    scope: Scope | None = None,
    chat: bool | None = None,
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
        v: a vector with a direction at several sites, each taken alone; or with one, which is tried at every site.
        prompts: texts or conversations.
        targets: what follows: a text or a pair `(positive, negative)` as a tuple, for all prompts; or a list with a
            text or a pair for each prompt. Taken literally: in plain text a target begins with its space.
        sites: one or several; an int means `resid_post`. Default: the sites of `v`; where it has a single direction,
            that site in every layer.
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
            that is no number.
        SiteError: a site that the model or the vector lacks.
        ShapeError: a direction of another width than the state at its site.
        ModelError: a model that the mode cannot differentiate.

    Source: the first-order effect of attribution patching (Nanda 2023; Syed et al. 2023), for a steering vector.

    Example:
        >>> import steerfn as sf
        >>> found = sf.sensitivity(model, tokenizer, v, ["The film was"], (" great", " awful"))  # doctest: +SKIP
        >>> found.ranking()[:3]  # doctest: +SKIP
    """
    v = as_vector(v, "sensitivity")
    if mode not in MODES:
        raise DataError(f"mode is 'reverse' or 'forward', not {mode!r}.")
    if chat not in (True, False, None):
        raise DataError(f"chat is True, False or None, not {chat!r}.")
    batch_size = plain_number(batch_size)
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise DataError(f"batch_size is 'auto' or a number of prompts from 1, not {batch_size!r}.")
    scope = None if scope is None else as_scope(scope)
    if not any(v.magnitude.values()):
        raise DataError("The vector is zero at all its sites, so no strength changes anything; pass another vector.")
    root = unwrapped(model)
    if "model" in v.metadata:
        check_match(v, root)
    items, paired = _items(tokenizer, as_texts(prompts, "prompts"), targets, chat)
    with torch.inference_mode(False):  # what is made in it can never be differentiated
        placed = _placed(v, sites, layout(root))
        parts = tuple(placed.select(site) for site in placed.sites)
        slopes = Slopes(Predictor.of(model, tokenizer), parts, scope, torch.promote_types(v.dtype, torch.float32))
        values, baseline = _run(slopes, items, mode, batch_size, progress)
    if not bool(torch.isfinite(values).all()):
        site, prompt = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise DataError(
            f"The slope at {placed.sites[site]} for prompts[{prompt}] is {float(values[site, prompt])}; load the model "
            "in float32, or leave the prompt out."
        )
    quantity = "(log p(positive) - log p(negative))" if paired else "log p(target)"
    return Sensitivity(values, baseline, placed.sites, quantity, None if scope is None else repr(scope))


def _placed(v: SteeringVector, sites: Any, found: Layout) -> SteeringVector:
    """The directions to differentiate along, in the order of a forward pass, without metadata: checked once, above."""
    v = v.resolve(found.n_layers)
    own = found.resolve(v.sites)
    if sites is not None:
        where = found.resolve(as_sites(sites))
    else:
        where = own if len(own) > 1 else _in_every_layer(v.sites[0], found)
    lacking = [] if len(own) == 1 else [site for site in where if site not in own]
    if lacking:
        raise SiteError(
            f"This vector has no direction at {lacking[0]}; it has {_shown(own)}. Pass sites among these, or a vector "
            "with one direction, v.select(site), which can be tried anywhere."
        )
    directions = {site: v._directions[0 if len(own) == 1 else own.index(site)] for site in where}
    for site, direction in directions.items():
        if direction.shape[-1] != found.width(site):
            raise ShapeError(
                f"The direction has width {direction.shape[-1]}, but {found.model} has width {found.width(site)} at "
                f"{site}; pass sites of the width that the vector was made at ({v.sites[0]})."
            )
    ordered = sorted(directions, key=lambda site: site.order)
    held = tuple(directions[site].detach().clone() for site in ordered)
    return replace(v, sites=tuple(ordered), _directions=held, metadata=Metadata(None))


def _in_every_layer(site: Site, found: Layout) -> tuple[Site, ...]:
    """The same site in every block that has it, as wide."""
    there = (
        Site(site.kind, layer, site.head)
        for layer, block in enumerate(found.blocks)
        if site.kind in block.kinds and (site.head is None or site.head < block.heads)
    )
    return tuple(each for each in there if found.width(each) == found.width(site))


def _items(tokenizer: Any, prompts: Sequence[Any], targets: Any, chat: bool | None) -> tuple[list[Item], bool]:
    """What to run for each prompt, and whether targets are pairs."""
    if isinstance(targets, (str, tuple)):
        given: list[Any] = [targets] * len(prompts)
    elif isinstance(targets, Sequence):
        given = list(targets)
    else:
        raise DataError(
            f"targets is a text, a pair (positive, negative), or a list of these, not a {type(targets).__name__}."
        )
    if len(given) != len(prompts):
        raise DataError(
            f"There are {len(given)} targets for {_count(len(prompts))}; pass one for each, or one text or pair "
            "(a tuple) for all."
        )
    sides = [(each,) if isinstance(each, str) else each for each in given]
    for i, each in enumerate(sides):
        if not isinstance(each, (tuple, list)) or not all(isinstance(text, str) for text in each):
            raise DataError(f"targets[{i}] is {given[i]!r:.80}; pass a text, or a pair of texts (positive, negative).")
        if len(each) != (1 if isinstance(given[i], str) else 2):
            raise DataError(f"targets[{i}] has {len(each)} texts; a pair is (positive, negative).")
        if len(each) != len(sides[0]):
            raise DataError(
                f"targets[0] is {given[0]!r:.60} and targets[{i}] is {given[i]!r:.60}; pass texts or pairs, not both, "
                "since their slopes have no common mean."
            )
    items = []
    for i, (prompt, texts) in enumerate(zip(prompts, sides, strict=True)):
        found = [continued(tokenizer, prompt, text, chat, f"prompts[{i}]") for text in texts]
        if len(found) == 2 and found[0] == found[1]:
            raise DataError(f"targets[{i}] sets {texts[0]!r:.60} against itself; pass two texts that differ.")
        items.append(Item.of(found))
    return items, len(sides[0]) == 2


def _run(
    slopes: Slopes, items: Sequence[Item], mode: str, batch_size: int | str, progress: bool
) -> tuple[Tensor, Tensor]:
    """Slopes `[sites, prompts]` and what is differentiated `[prompts]`, in float64 on the CPU; the longest first."""
    from tqdm import tqdm

    order = sorted(range(len(items)), key=lambda i: -items[i].longest)
    values = torch.zeros(len(slopes.parts), len(items), dtype=torch.float64)
    baseline = torch.zeros(len(items), dtype=torch.float64)
    budget = TOKENS.get(slopes.predict.device.type, TOKENS_ELSEWHERE) if isinstance(batch_size, str) else None
    rows = max(len(item.rows) for item in items)
    with tqdm(total=len(items), desc="Differentiating", unit="prompt", disable=not progress, leave=False) as shown:
        start = 0
        while start < len(items):
            longest = items[order[start]].longest
            size = batch_size if isinstance(batch_size, int) else max(1, (budget or 0) // (rows * longest))
            chosen = order[start : start + size]
            batch = [items[i] for i in chosen]
            try:
                predicted, found = slopes.reverse(batch) if mode == "reverse" else slopes.forward(batch)
            except torch.OutOfMemoryError:
                if budget is None or len(batch) == 1:
                    raise
                budget = len(batch) * rows * longest // 2
                continue
            values[:, chosen], baseline[chosen] = found.double().cpu(), predicted.double().cpu()
            start += len(batch)
            shown.update(len(batch))
    return values, baseline


def _shown(sites: Sequence[Site]) -> str:
    return ", ".join(map(str, sites[:8])) + (f", ... ({len(sites)} sites)" if len(sites) > 8 else "")


def _count(prompts: int) -> str:
    return f"{prompts} prompt{'s' * (prompts != 1)}"
