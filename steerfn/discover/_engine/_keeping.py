"""Any method with all its activations kept, so that its quality can be measured."""

import dataclasses
from typing import Any

from torch import Tensor

from steerfn.datasets import Texts
from steerfn.discover._engine._chance import chance_of_best
from steerfn.discover._engine._method import Kept, Method, RowPair
from steerfn.discover._engine._quality import measure
from steerfn.output import progress_bar
from steerfn.values import Site, static, struct


@struct
class Keeping(Kept):
    """A method that makes of all rows, at the end, what another makes of them as they come."""

    method: Method = static()

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.name

    @property
    def paired(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.paired

    def finalize(self, state: RowPair) -> Tensor:
        return self.outcome(state)[0]

    def outcome(self, state: RowPair) -> tuple[Tensor, dict[str, Any]]:
        rows = state.sort()
        start = self.method.init(rows.positive.values.shape[-1])
        return self.method.outcome(self.method.update(start, rows.positive, rows.negative))


def qualities(
    method: Method, states: dict[Site, RowPair], directions: dict[Site, Tensor], texts: Texts, seed: int, progress: bool
) -> dict[str, Any]:
    """The quality of the direction at each site, and what the best of them reaches by chance, as JSON values."""
    bar = progress_bar("Cross-validating", "site", progress, states.items())
    by_site = {
        site.name: measure(
            method, kept.positive, kept.negative, seed=seed, direction=directions[site], texts=texts
        ).to_dict()
        for site, kept in bar
    }
    known = [each["auc"] for each in by_site.values() if each["auc"] is not None]
    chance = chance_of_best(list(states.values()), max(known), texts, seed=seed) if known else None
    return {"quality": by_site, "chance": None if chance is None else dataclasses.asdict(chance)}
