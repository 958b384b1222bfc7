"""A small paired method for tests: it keeps every difference, so its state grows and halves of pairs have to wait."""

from typing import Any, ClassVar

import torch

from steerfn.discover._engine._discover import discover
from steerfn.discover._engine._method import Method, StateRows
from steerfn.values._struct import static, struct


@struct
class Differences(Method):
    """The sum of the differences of pairs, each weighted by the number of its pair."""

    power: float = static(default=1.0)
    name: ClassVar[str] = "differences"
    paired: ClassVar[bool] = True

    def init(self, width):
        return StateRows.empty(width)

    def update(self, state, positive, negative):
        assert torch.equal(positive.index, negative.index)
        return state.concat(StateRows(positive.index, positive.values - negative.values))

    def merge(self, first, second):
        return first.concat(second)

    def finalize(self, state):
        found = state.sort()
        return (found.index.double() + 1) ** self.power @ found.values


def differences(*arguments: Any, power: float = 1.0, **options: Any):
    return discover(Differences(power), *arguments, **options)
