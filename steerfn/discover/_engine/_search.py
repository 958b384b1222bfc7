"""Gradient search for the directions that lower a loss, within bounds on their norms."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.discover._engine._objective import Examples, losses
from steerfn.operators import Operator, Scope, add, at
from steerfn.output import progress_bar
from steerfn.run import Predictor
from steerfn.values import DataError, Site, SteeringVector, replace

CHECK = 10
"""Steps between two looks at the held-out loss, where a pass over the examples takes longer."""


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A loss under a bound.

    Attributes:
        predict: the model.
        scope: the tokens to steer; None: all.
        bounds: the largest norm by site.
        train: the examples that gradients come from.
        test: the examples that decide which vector is kept.
        beta: see `losses`.
        size: examples of each kind at once.
    """

    predict: Predictor
    scope: Scope | None
    bounds: dict[Site, float]
    train: Examples
    test: Examples
    beta: float
    size: int

    def steering(self, v: SteeringVector) -> Operator:
        """The operator that a vector stands for here."""
        return add(v) if self.scope is None else at(self.scope, add(v))

    def loss(self, v: SteeringVector, examples: Examples) -> Tensor:
        """The sum over kinds of the mean over examples, differentiable in the vector."""
        return torch.stack([each.mean() for each in losses(self.predict, self.steering(v), examples, self.beta)]).sum()

    def evaluate(self, v: SteeringVector, examples: Examples) -> float:
        """The same number over any count of examples, batch by batch."""
        total = 0.0
        for field in dataclasses.fields(examples):
            items = getattr(examples, field.name)
            chunks = [items[i : i + self.size] for i in range(0, len(items), self.size)]
            with torch.no_grad():
                total += sum(float(self.loss(v, Examples(**{field.name: c}))) * len(c) / len(items) for c in chunks)
        return total

    def project(self, v: SteeringVector) -> SteeringVector:
        """The nearest vector within the bounds."""
        bounded = [
            d * min(1.0, self.bounds[site] / norm) if (norm := float(torch.linalg.vector_norm(d))) > 0 else d
            for site, d in zip(v.sites, v.directions, strict=True)
        ]
        return replace(v, _directions=tuple(bounded))

    def run(
        self, start: SteeringVector, steps: int, lr: float, patience: int, random: torch.Generator, progress: bool
    ) -> tuple[SteeringVector, dict[str, Any]]:
        """The best vector met, and what to say of the search."""
        v = best = self.project(start)
        before = lowest = self.evaluate(v, self.test)
        train_before = self.evaluate(v, self.train)
        # Adam moves every coordinate by about its rate: in these units a step has the length lr * bound.
        rates = [lr * self.bounds[site] / math.sqrt(d.shape[-1]) for site, d in zip(v.sites, v.directions, strict=True)]
        leaves = [d.clone() for d in v.directions]
        adam = torch.optim.Adam([{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves, rates, strict=True)])
        batches = batches_of(self.train, self.size, random)
        longest = max(len(getattr(self.train, field.name)) for field in dataclasses.fields(self.train))
        every = min(CHECK, math.ceil(longest / self.size))
        taken = best_step = 0
        with progress_bar("Optimising", "step", progress, total=steps) as bar:
            while taken < steps and taken - best_step < patience:
                batch = next(batches)
                # Without gradients outside, only the vector is followed, and no parameter of the model.
                with torch.no_grad():
                    gradient, loss = torch.func.grad_and_value(lambda u, batch=batch: self.loss(u, batch))(v)
                if not math.isfinite(float(loss)):
                    raise DataError(
                        f"The loss is {float(loss)} after {taken} steps; pass a smaller max_norm or lr, or a model in "
                        "float32."
                    )
                for leaf, part in zip(leaves, gradient.directions, strict=True):
                    leaf.grad = part
                adam.step()
                v = self.project(replace(v, _directions=tuple(leaf.clone() for leaf in leaves)))
                for leaf, direction in zip(leaves, v.directions, strict=True):
                    leaf.copy_(direction)
                taken += 1
                bar.update()
                if taken % every == 0 or taken == steps:
                    now = self.evaluate(v, self.test)
                    bar.set_postfix(held_out=f"{now:.4g}")
                    if now < lowest:
                        best, lowest, best_step = v, now, taken
        return best, {
            "steps": taken,
            "best_step": best_step,
            "held_out_loss": {"before": before, "after": lowest},
            "train_loss": {"before": train_before, "after": self.evaluate(best, self.train)},
        }


def batches_of(examples: Examples, size: int, random: torch.Generator) -> Iterator[Examples]:
    """Batches without end, each with some of every kind, in an order that changes with every pass."""

    def cycle(items: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        while True:
            order = torch.randperm(len(items), generator=random).tolist()
            for i in range(0, len(items), size):
                yield tuple(items[j] for j in order[i : i + size])

    kinds = {f.name: cycle(items) for f in dataclasses.fields(examples) if (items := getattr(examples, f.name))}
    while True:
        yield Examples(**{name: next(chunks) for name, chunks in kinds.items()})
