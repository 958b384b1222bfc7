"""Any method with all its activations kept, so that its quality can be measured."""

from typing import Any

from torch import Tensor

from steerfn._site import Site
from steerfn._struct import static, struct
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
    method: Method, states: dict[Site, Pair], directions: dict[Site, Tensor], seed: int, progress: bool
) -> dict[str, Any]:
    """The quality of the direction at each site, as a JSON value."""
    from tqdm import tqdm

    bar = tqdm(states.items(), desc="Cross-validating", unit="site", disable=not progress, leave=False)
    return {
        site.name: measure(method, kept.positive, kept.negative, seed=seed, direction=directions[site]).to_dict()
        for site, kept in bar
    }
