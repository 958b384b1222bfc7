"""The engine: plans which rows to run, runs them batch by batch, and stops each pass once everything is read.

A plan is a value: the same texts and options give the same rows in the same order, so a run can be cut anywhere (a
checkpoint), split over processes (a shard) and repeated bit for bit.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.model import (
    Layout,
    Look,
    StopForward,
    entries_of,
    infer,
    layout,
    observation,
    substitutions_of,
    unwrap_model,
)
from steerfn.output import progress_bar
from steerfn.run._budget import TOKENS, Budget
from steerfn.run._capabilities import Capabilities, capabilities, window
from steerfn.run._positions import Read
from steerfn.run._sinks import Sinks, measure_sinks
from steerfn.run._text import input_device
from steerfn.run._trees import PackedRow, alone, pack, pack_rows
from steerfn.values import Activations, ModelError, Site, as_sites, check_shapes, resid_post
from steerfn.verbs import refuse_open_rows


@dataclasses.dataclass(frozen=True)
class _Places:
    """The places of a batch that are read: flat indices, and which text each belongs to where some have several."""

    shape: tuple[int, int]
    index: Tensor
    weights: Tensor | None
    segments: Tensor | None
    texts: int

    def gather(self, hidden: Tensor, site: Site) -> Tensor:
        """`[texts, width]` out of `[rows, seq, width]`, in at least float32."""
        if hidden.shape[:2] != self.shape:
            raise ModelError(
                f"The hidden state at {site} has shape {list(hidden.shape)} for {self.shape[0]} rows of "
                f"{self.shape[1]} tokens, not [rows, tokens, width], so texts cannot be read there; use sf.capture."
            )
        device = hidden.device
        states = hidden.reshape(-1, hidden.shape[-1])[self.index.to(device)]
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        if self.weights is None or self.segments is None:
            return states
        weighted = states * self.weights.to(device, states.dtype).unsqueeze(-1)
        return states.new_zeros(self.texts, states.shape[-1]).index_add_(0, self.segments.to(device), weighted)


@dataclasses.dataclass(frozen=True)
class Batch:
    """The hidden states that one forward pass has read.

    Attributes:
        texts: the number of the text that each state is of.
        states: `[texts, width]` by site, in at least float32, on the CPU.
        done: how many rows of the plan are done with it.
    """

    texts: list[int]
    states: dict[Site, Tensor]
    done: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan of reading: the texts, the sites, and the rows that hold them.

    Attributes:
        sites: resolved sites.
        reads: what is read of each text.
        rows: every text in exactly one row.
        can: what the model computes right.
        budget: the texts of a batch, or its tokens, padding included.
        sinks: the model's attention sinks, where they were measured because a mean leaves them out.
    """

    sites: tuple[Site, ...]
    reads: Sequence[Read]
    rows: Sequence[PackedRow]
    can: Capabilities
    budget: Budget
    sinks: Sinks | None = None

    def shard(self, part: int, parts: int) -> "Plan":
        """Every `parts`-th row, from `part` on: the rows of one of several workers."""
        return dataclasses.replace(self, rows=self.rows[part::parts])

    @property
    def texts(self) -> int:
        """How many texts its rows hold."""
        return sum(len(row.paths) for row in self.rows)

    def together(self, rows: Sequence[PackedRow]) -> int:
        """How many of some rows, from the first, can run at once: alike in kind, with no more texts than `limit`."""
        first, texts = rows[0], 0
        for n, row in enumerate(rows):
            texts += len(row.paths)
            full = self.budget.limit is not None and texts > self.budget.limit
            padded = not self.can.pad and len(row.ids) != len(first.ids)
            # Trees need a mask of their own, beside which plain texts would lose the faster kernels of attention.
            if n and (full or padded or row.shared != first.shared):
                return n
        return len(rows)


def plan(model: Any, reads: Sequence[Read], sites: Any, *, batch_size: int | str = "auto", share: bool = True) -> Plan:
    """Plans how to read texts at sites of a model.

    Args:
        model: any transformers causal LM.
        sites: one or several; an int means `resid_post`.
        batch_size: texts at once, or "auto".
        share: False is the plain path: every text in a row of its own, every token run.

    Raises:
        DataError: a batch size that is neither "auto" nor a positive integer.
        SiteError: a site that the model lacks, or that its forward pass does not meet.
    """
    budget = Budget.of(batch_size, input_device(unwrap_model(model)), TOKENS)
    refuse_open_rows(model, "texts are read in batches of any order")
    root = unwrap_model(model)
    at = layout(root)
    resolved = at.resolve(as_sites(sites))
    steered = is_steered(root, at)
    capabilities = capabilities_at(root, at, resolved)
    if steered or not share:
        capabilities = dataclasses.replace(capabilities, share=False, narrow=False)
    sinks = sinks_of(model, reads, resolved) if any(read.mean for read in reads) else None
    reads = reads if sinks is None else [sinks.leave_out(read) for read in reads]
    longest = window(getattr(root, "config", None))
    rows = pack(reads, whole=steered, share=capabilities.share, width=at.d_model, longest=longest, most=budget.limit)
    return Plan(resolved, reads, rows, capabilities, budget, sinks)


@check_shapes
def read_states(
    model: Any, reads: Sequence[Read], sites: Any, *, batch_size: Any = "auto", progress: bool = True
) -> dict[Site, Activations]:
    """The hidden states read of each text, `[texts, width]` by site, in at least float32, on the CPU.

    Raises:
        DataError: a batch size that is neither "auto" nor a positive integer.
        SiteError: a site that the model lacks.
    """
    by_site: dict[Site, Tensor] = {}
    for batch in run(model, plan(model, reads, sites, batch_size=batch_size), progress=progress):
        for site, state in batch.states.items():
            if site not in by_site:
                by_site[site] = torch.empty(len(reads), state.shape[-1], dtype=state.dtype)
            by_site[site][batch.texts] = state
    return by_site


def sum_norms(model: Any, rows: Sequence[Sequence[int]], sites: Any) -> dict[Site, float]:
    """The norm of the hidden state at the last token of each text, summed over the texts, by site."""
    reads = [Read(tuple(row), (len(row) - 1,)) for row in rows]
    total: dict[Site, float] = {}
    for batch in run(model, plan(model, reads, sites), progress=False):
        for site, states in batch.states.items():
            total[site] = total.get(site, 0.0) + float(states.double().norm(dim=-1).sum())
    return total


def sinks_of(model: Any, reads: Sequence[Read], sites: tuple[Site, ...]) -> Sinks:
    """The attention sinks of a model, measured on some of the texts that are to be read."""
    at = layout(unwrap_model(model))
    blocks = [resid_post[i] for i, block in enumerate(at.blocks) if "resid_post" in block.kinds]
    return measure_sinks(reads, blocks, sites, functools.partial(read_states, model, progress=False))


def is_steered(root: Any, at: Layout) -> bool:
    """Whether the caller has a steering open on a model: then a text must be whole and alone, since scopes count it."""
    return bool(entries_of(substitutions_of(root, at).host))


def capabilities_at(root: Any, at: Layout, sites: tuple[Site, ...]) -> Capabilities:
    """Which shortcuts a model supports when read at some sites."""
    return capabilities(root, at, sites, functools.partial(_pass, root, root, at, sites))


def run(model: Any, planned: Plan, *, start: int = 0, progress: bool = True) -> Iterator[Batch]:
    """Runs a plan from a row on, batch by batch. Where memory runs out, batches are halved.

    Raises:
        torch.OutOfMemoryError: not even one text fits, or a batch of a given `batch_size` does not.
    """
    root = unwrap_model(model)
    at = layout(root)

    def step(rows: Sequence[PackedRow]) -> tuple[list[int], dict[Site, Tensor]]:
        try:
            return _pass(model, root, at, planned.sites, planned.reads, rows, planned.can.narrow)
        except torch.OutOfMemoryError:
            if not rows[0].shared or (len(rows) > 1 and planned.budget.limit is None):
                raise
        # The texts are too large together: each in a pass of its own.
        apart = [alone(number, [row.ids[j] for j in path]) for row in rows for number, path in row.paths]
        passes = [_pass(model, root, at, planned.sites, planned.reads, [row], planned.can.narrow) for row in apart]
        states = {site: torch.cat([each[site] for _, each in passes]) for site in planned.sites}
        return [number for texts, _ in passes for number in texts], states

    left, before = planned.rows[start:], sum(len(row.paths) for row in planned.rows[:start])
    with progress_bar("Reading activations", "text", progress, total=planned.texts, initial=before) as bar:
        for rows, (texts, states) in planned.budget.run(left, step, lambda row: len(row.ids), planned.together):
            start += len(rows)
            bar.update(sum(len(row.paths) for row in rows))
            yield Batch(texts, {site: state.cpu() for site, state in states.items()}, start)


def _pass(
    model: Any,
    root: Any,
    at: Layout,
    sites: tuple[Site, ...],
    reads: Sequence[Read],
    rows: Sequence[PackedRow],
    narrow: bool = False,
) -> tuple[list[int], dict[Site, Tensor]]:
    """One forward pass over some rows."""
    grid = pack_rows(rows)
    texts, places = _places(rows, reads, grid.ids.shape[1])
    store: dict[Site, Tensor] = {}

    def see(site: Site, hidden: Tensor) -> None:
        store[site] = places.gather(hidden, site)
        if len(store) == len(sites):
            raise StopForward

    entry = observation(root, at, Look(sites, see), matter=places.index.unique() if narrow else None)
    infer(model, root, at, entry, grid.inputs(getattr(root, "dtype", torch.float32), input_device(root)))
    at.check_met(sites, store)
    return texts, {site: store[site] for site in sites}


def _places(rows: Sequence[PackedRow], reads: Sequence[Read], longest: int) -> tuple[list[int], _Places]:
    """The texts of a batch and the places to read of each."""
    texts, index, segments, weights = [], [], [], []
    for i, row in enumerate(rows):
        for number, path in row.paths:
            index.extend(i * longest + path[list(reads[number].where)])
            tokens, states = len(reads[number].where), len(reads[number].where) if reads[number].apart else 1
            segments.extend(len(texts) + j * states // tokens for j in range(tokens))
            weights.extend([states / tokens] * tokens)
            texts.extend([number] * states)
    shape, places = (len(rows), longest), torch.tensor(index)
    if len(index) == len(texts):
        return texts, _Places(shape, places, None, None, len(texts))
    return texts, _Places(shape, places, torch.tensor(weights), torch.tensor(segments), len(texts))
