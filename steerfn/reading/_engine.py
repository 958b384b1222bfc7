"""The engine: plans which rows to run, runs them batch by batch, and stops each pass once everything is read.

A plan is a value: the same texts and options give the same rows in the same order, so a run can be cut anywhere (a
checkpoint), split over processes (a shard) and repeated bit for bit.
"""

import contextvars
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn import _forward
from steerfn._blocks import Layout, unwrapped
from steerfn._errors import ModelError
from steerfn._forward import Entry
from steerfn._layout import layout
from steerfn._site import Site, as_sites
from steerfn._steer import refuse_open_rows
from steerfn._struct import static, struct
from steerfn._substitute import device_of, substitutions_of
from steerfn._text import input_device
from steerfn.operators import Info, Operator
from steerfn.reading._abilities import Abilities, abilities, window
from steerfn.reading._budget import TOKENS, TOKENS_ELSEWHERE, limit_of
from steerfn.reading._packing import Row, additive, alone, pack
from steerfn.reading._passing import Enough, passed
from steerfn.reading._positions import Read


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
        found = hidden.reshape(-1, hidden.shape[-1])[self.index.to(device)]
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        if self.weights is None or self.segments is None:
            return found
        weighted = found * self.weights.to(device, found.dtype).unsqueeze(-1)
        return found.new_zeros(self.texts, found.shape[-1]).index_add_(0, self.segments.to(device), weighted)


@struct
class _Reader:
    places: Any
    store: Any
    wanted: Any

    def __call__(self, hidden: Tensor, info: Info) -> Tensor:
        self.store[info.site] = self.places.gather(hidden, info.site)
        if len(self.store) == self.wanted:
            raise Enough
        return hidden


@struct
class _Reading(Operator):
    """Not an operator on the state: reads it and hands it on, or stops the pass."""

    at_sites: tuple[Site, ...] = static()
    places: Any = static()
    store: Any = static()

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.at_sites

    def bind(self, site: Site, device: Any = None) -> Any:
        del site, device
        return _Reader(places=self.places, store=self.store, wanted=len(self.at_sites))


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one forward pass has read.

    Attributes:
        texts: the numbers of the texts.
        states: `[texts, width]` by site, in at least float32, on the CPU.
        done: how many rows of the plan are done with it.
    """

    texts: list[int]
    states: dict[Site, Tensor]
    done: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to read, in which rows.

    Attributes:
        sites: resolved sites.
        reads: what is read of each text.
        rows: every text in exactly one row.
        can: what the model computes right.
        budget: tokens of a batch, padding included; None for `limit`.
        limit: texts of a batch; None for `budget`.
    """

    sites: tuple[Site, ...]
    reads: Sequence[Read]
    rows: Sequence[Row]
    can: Abilities
    budget: int | None
    limit: int | None

    def shard(self, part: int, parts: int) -> "Plan":
        """Every `parts`-th row, from `part` on: the rows of one of several workers."""
        return dataclasses.replace(self, rows=self.rows[part::parts])

    @property
    def texts(self) -> int:
        """How many texts its rows hold."""
        return sum(len(row.paths) for row in self.rows)

    def batch(self, start: int, budget: int | None) -> list[Row]:
        """The rows of the batch that begins at a row: alike in kind, within the budget, at least one."""
        first, held, chosen = self.rows[start], 0, []
        for row in self.rows[start : start + 4096]:
            held += len(row.paths)
            full = held > self.limit if self.limit else (len(chosen) + 1) * len(first.ids) > (budget or 1)
            padded = not self.can.pad and len(row.ids) != len(first.ids)
            if chosen and (full or padded or row.shared != first.shared):
                break
            chosen.append(row)
        return chosen


def plan(model: Any, reads: Sequence[Read], sites: Any, *, batch_size: int | str = "auto", share: bool = True) -> Plan:
    """Plans how to read texts at sites of a model.

    Args:
        model: any transformers causal LM.
        reads: what is read of each text.
        sites: one or several; an int means `resid_post`.
        batch_size: texts at once, or "auto".
        share: False is the plain path: every text in a row of its own, every token run.

    Raises:
        DataError: a batch size that is none.
        SiteError: a site that the model lacks.
    """
    limit = limit_of(batch_size)
    refuse_open_rows(model, "texts are read in batches of any order")
    root = unwrapped(model)
    at = layout(root)
    wanted = at.resolve(as_sites(sites))
    steered = is_steered(root, at)
    can = able(root, at, wanted)
    if steered or not share:
        can = dataclasses.replace(can, share=False, narrow=False)
    longest = window(getattr(root, "config", None))
    rows = pack(reads, whole=steered, share=can.share, width=at.d_model, longest=longest, most=limit)
    budget = None if limit else TOKENS.get(input_device(root).type, TOKENS_ELSEWHERE)
    return Plan(wanted, reads, rows, can, budget, limit)


def is_steered(root: Any, at: Layout) -> bool:
    """Whether the caller has a steering open on a model: then a text must be whole and alone, since scopes count it."""
    return bool(_forward.entries_of(substitutions_of(root, at).host))


def able(root: Any, at: Layout, sites: tuple[Site, ...]) -> Abilities:
    """What a model can when read at some sites: asked of the model, in a context where no steering is open."""
    ask = functools.partial(_pass, root, root, at, sites)
    return contextvars.Context().run(abilities, root, at, sites, ask)


def run(model: Any, planned: Plan, *, start: int = 0, progress: bool = True) -> Iterator[Batch]:
    """Runs a plan from a row on, batch by batch. Where memory runs out, batches are halved.

    Raises:
        torch.OutOfMemoryError: not even one text fits, or a batch of a given `batch_size` does not.
    """
    from tqdm import tqdm

    root = unwrapped(model)
    at = layout(root)
    budget = planned.budget
    before = sum(len(row.paths) for row in planned.rows[:start])
    with tqdm(
        total=planned.texts, initial=before, desc="Reading activations", unit="text", disable=not progress, leave=False
    ) as bar:
        while start < len(planned.rows):
            rows = planned.batch(start, budget)
            try:
                texts, states = _pass(model, root, at, planned.sites, planned.reads, rows, planned.can.narrow)
            except torch.OutOfMemoryError:
                if len(rows) > 1 and budget is not None:
                    budget = len(rows) * len(rows[0].ids) // 2
                    continue
                if not rows[0].shared:
                    raise
                texts, states = _one_by_one(model, root, at, planned, rows)
            start += len(rows)
            bar.update(len(texts))
            yield Batch(texts, {site: state.cpu() for site, state in states.items()}, start)


def _one_by_one(
    model: Any, root: Any, at: Layout, planned: Plan, rows: Sequence[Row]
) -> tuple[list[int], dict[Site, Tensor]]:
    """The texts of rows that are too large together, each in a pass of its own."""
    apart = [alone(number, [row.ids[j] for j in path]) for row in rows for number, path in row.paths]
    found = [_pass(model, root, at, planned.sites, planned.reads, [row], planned.can.narrow) for row in apart]
    states = {site: torch.cat([each[site] for _, each in found]) for site in planned.sites}
    return [number for texts, _ in found for number in texts], states


def _pass(
    model: Any,
    root: Any,
    at: Layout,
    sites: tuple[Site, ...],
    reads: Sequence[Read],
    rows: Sequence[Row],
    narrow: bool = False,
) -> tuple[list[int], dict[Site, Tensor]]:
    """One forward pass over some rows, padded on the right, where no causal model looks."""
    device, longest = input_device(root), max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
    given: dict[str, Tensor] = {"input_ids": torch.from_numpy(ids).to(device)}
    if any(row.shared for row in rows):
        given.update(_tree_inputs(rows, longest, getattr(root, "dtype", torch.float32), device))
    else:
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            mask[i, : len(row.ids)] = 1
        given["attention_mask"] = torch.from_numpy(mask).to(device)
    texts, places = _places(rows, reads, longest)
    store: dict[Site, Tensor] = {}
    reading = _Reading(sites, places, store)
    matter = places.index.unique() if narrow else None
    host = substitutions_of(root, at).host
    passed(model, root, at, Entry(host, reading, lambda site: device_of(root, at, site), matter=matter), given)
    return texts, {site: store[site] for site in sites}


def _tree_inputs(rows: Sequence[Row], longest: int, dtype: torch.dtype, device: Any) -> dict[str, Tensor]:
    """Position ids and the additive 4-D mask of rows that hold trees. Padding sees itself, so that no row is empty."""
    seen = np.zeros((len(rows), longest, longest), dtype=bool)
    depth = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        n = len(row.ids)
        seen[i, :n, :n] = row.visible()
        seen[i, range(n, longest), range(n, longest)] = True
        depth[i, :n] = row.depth
    return {"attention_mask": additive(seen, dtype, device), "position_ids": torch.from_numpy(depth).to(device)}


def _places(rows: Sequence[Row], reads: Sequence[Read], longest: int) -> tuple[list[int], _Places]:
    """The texts of a batch and the places to read of each."""
    texts, index, segments, weights = [], [], [], []
    for i, row in enumerate(rows):
        for number, path in row.paths:
            where = reads[number].where
            index.extend(i * longest + path[list(where)])
            segments.extend([len(texts)] * len(where))
            weights.extend([1 / len(where)] * len(where))
            texts.append(number)
    shape, places = (len(rows), longest), torch.tensor(index)
    if len(index) == len(texts):
        return texts, _Places(shape, places, None, None, len(texts))
    return texts, _Places(shape, places, torch.tensor(weights), torch.tensor(segments), len(texts))
