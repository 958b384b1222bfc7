"""Any method with all its activations kept, so that its quality can be measured."""

import dataclasses
from typing import Any

from torch import Tensor

from steerfn._site import Site
from steerfn._struct import static, struct
from steerfn.discover.engine._chance import chance_of_best
from steerfn.discover.engine._folds import Texts
from steerfn.discover.engine._kept import Kept, Pair
from steerfn.discover.engine._method import Method
from steerfn.discover.engine._quality import measure


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

    def finalize(self, state: Pair) -> Tensor:
        return self.outcome(state)[0]

    def outcome(self, state: Pair) -> tuple[Tensor, dict[str, Any]]:
        found = state.ordered()
        start = self.method.init(found.positive.values.shape[-1])
        return self.method.outcome(self.method.update(start, found.positive, found.negative))


def qualities(
    method: Method, states: dict[Site, Pair], directions: dict[Site, Tensor], texts: Texts, seed: int, progress: bool
) -> dict[str, Any]:
    """The quality of the direction at each site, and what the best of them reaches by chance, as JSON values."""
    from tqdm import tqdm

    bar = tqdm(states.items(), desc="Cross-validating", unit="site", disable=not progress, leave=False)
    found = {
        site.name: measure(
            method, kept.positive, kept.negative, seed=seed, direction=directions[site], texts=texts
        ).to_dict()
        for site, kept in bar
    }
    known = [each["auc"] for each in found.values() if each["auc"] is not None]
    chance = chance_of_best(list(states.values()), max(known), texts, seed=seed) if known else None
    return {"quality": found, "chance": None if chance is None else dataclasses.asdict(chance)}
