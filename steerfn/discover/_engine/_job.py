"""Running a method over texts: the state after every batch, cut and resumed, alone or by many workers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steerfn.discover._engine._contrast import Contrast
from steerfn.discover._engine._method import Method, StateRows, match_rows
from steerfn.model import layout, unwrap_model
from steerfn.run import Batch, Plan, plan, run
from steerfn.values import Site, struct


@struct
class Run:
    """How far a run has come: an immutable value, mergeable with another run over other rows of the same plan.

    Attributes:
        done: rows of the plan that are in it.
        states: the method's state by site, in the plan's order.
        waiting: by site, texts whose counterpart has not been read yet (positives, negatives).
    """

    done: Tensor
    states: tuple[Any, ...]
    waiting: tuple[tuple[StateRows, StateRows], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """All that a run needs besides the model.

    Attributes:
        planned: what to read.
        positive: how many of the texts, from the first, are positives.
        method: what to make of it.
        widths: of the sites, in the plan's order.
    """

    planned: Plan
    positive: int
    method: Method
    widths: tuple[int, ...]

    def start(self) -> Run:
        """The run that has read nothing."""
        states = tuple(self.method.init(width) for width in self.widths)
        return Run(torch.tensor(0), states, tuple((StateRows.empty(w), StateRows.empty(w)) for w in self.widths))

    def step(self, so_far: Run, batch: Batch) -> Run:
        """The run after one more batch."""
        numbers = torch.tensor(batch.texts)
        first = numbers < self.positive
        states, waiting = [], []
        for site, state, held in zip(self.planned.sites, so_far.states, so_far.waiting, strict=True):
            values = batch.states[site].to(torch.float64)
            sides = StateRows(numbers[first], values[first]), StateRows(numbers[~first] - self.positive, values[~first])
            state, held = self._take(state, held, sides)
            states.append(state)
            waiting.append(held)
        return Run(torch.tensor(batch.done), tuple(states), tuple(waiting))

    def _take(
        self, state: Any, held: tuple[StateRows, StateRows], sides: tuple[StateRows, StateRows]
    ) -> tuple[Any, tuple[StateRows, StateRows]]:
        if self.method.paired:  # a text waits until its counterpart, of another batch or worker, has been read
            sides, held = match_rows(held[0].concat(sides[0]), held[1].concat(sides[1]))
        return (self.method.update(state, *sides) if len(sides[0]) or len(sides[1]) else state), held

    def merge(self, one: Run, other: Run) -> Run:
        """The run over the rows of both."""
        merged = [self.method.merge(a, b) for a, b in zip(one.states, other.states, strict=True)]
        taken = [self._take(*each) for each in zip(merged, one.waiting, other.waiting, strict=True)]
        return Run(one.done + other.done, tuple(s for s, _ in taken), tuple(held for _, held in taken))

    def run(
        self, model: Any, so_far: Run | None = None, *, progress: bool = True, keep: Callable[[Run], None] | None = None
    ) -> Run:
        """Read what is left, batch by batch.

        Args:
            so_far: where to go on.
            keep: is given the run after every batch (a checkpoint).
        """
        so_far = self.start() if so_far is None else so_far
        for batch in run(model, self.planned, start=int(so_far.done), progress=progress):
            so_far = self.step(so_far, batch)
            if keep is not None:
                keep(so_far)
        return so_far


def job(model: Any, texts: Contrast, method: Method, sites: Any, batch_size: int | str) -> Job:
    """The job of running a method over texts at sites of a model."""
    planned = plan(model, texts.reads, sites, batch_size=batch_size)
    at = layout(unwrap_model(model))
    return Job(planned, texts.positive, method, tuple(at.width(site) for site in planned.sites))


def states_by_site(work: Job, finished: Run) -> dict[Site, Any]:
    """The method's final state at each site."""
    return dict(zip(work.planned.sites, finished.states, strict=True))
