"""The protocol of a discovery method: a mergeable statistic of activations, and the direction computed from it.

States are immutable pytrees of float64 tensors. `merge` makes them independent of batches, of their order, of how
work is split over processes, and lets a run be cut and resumed. Methods that need every activation keep all rows, in
whatever order they were read.
"""

import abc
from typing import Any, ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn.datasets import Texts
from steerfn.values import DataError, Site, struct


@struct
class StateRows:
    """Activations at one site, one row for each text.

    Attributes:
        index: the number of each text on its side, `[n]`.
        values: `[n, width]`, float64.
    """

    index: Tensor
    values: Tensor

    @classmethod
    def empty(cls, width: int) -> "StateRows":
        """No rows."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, width, dtype=torch.float64))

    def __len__(self) -> int:
        return self.index.shape[0]

    def __getitem__(self, chosen: Any) -> "StateRows":
        return StateRows(self.index[chosen], self.values[chosen])

    def concat(self, other: "StateRows") -> "StateRows":
        """The rows of both."""
        return StateRows(torch.cat([self.index, other.index]), torch.cat([self.values, other.values]))

    def sort(self) -> "StateRows":
        """By text number, so that the order of reading leaves no trace."""
        return self[self.index.argsort()]


def check_finite(site: Site, *states: Tensor) -> None:
    """Refuse activations at a site that are not all numbers.

    Raises:
        DataError: one is not.
    """
    if not all(bool(torch.isfinite(each).all()) for each in states):
        raise DataError(
            f"The activations at {site} are not all finite numbers; load the model in bfloat16 or float32 (float16 "
            "overflows), or leave that site out."
        )


def match_rows(first: StateRows, second: StateRows) -> tuple[tuple[StateRows, StateRows], tuple[StateRows, StateRows]]:
    """The rows that have their counterpart, aligned by number; and those that wait for it."""
    here, there = torch.isin(first.index, second.index), torch.isin(second.index, first.index)
    return (first[here].sort(), second[there].sort()), (first[~here], second[~there])


class Method(abc.ABC):
    """One way to a direction. Subclasses are frozen structs.

    Attributes:
        name: as in the metadata of its vectors.
        paired: whether `update` gets pairs: as many positive as negative rows, aligned.
    """

    name: ClassVar[str]
    paired: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, width: int) -> Any:
        """The state of no texts at one site."""

    @abc.abstractmethod
    def update(self, state: Any, positive: StateRows, negative: StateRows) -> Any:
        """The state with more texts (where the method is not paired, either side may have none)."""

    def merge(self, first: Any, second: Any) -> Any:
        """The state of the texts of both: by default states are sums."""
        return pytree.tree_map(torch.add, first, second)

    @abc.abstractmethod
    def finalize(self, state: Any) -> Tensor:
        """The direction, `[width]`, float64, in units of the hidden state."""

    def outcome(self, state: Any) -> tuple[Tensor, dict[str, Any]]:
        """The direction, and what else is known of it at its site: JSON values by name, for the metadata."""
        return self.finalize(state), {}

    def with_texts(self, texts: Texts) -> "Method":
        """The method for some texts, for those that divide them into folds."""
        del texts
        return self

    def about(self) -> dict[str, Any]:
        """The method's parameters, for the metadata."""
        return {}

    def of(self, positive: StateRows, negative: StateRows) -> Tensor:
        """The direction of activations at hand."""
        return self.finalize(self.update(self.init(positive.values.shape[-1]), positive, negative))


def along(axis: Tensor, difference: Tensor) -> Tensor:
    """An axis, scaled and turned to where the positives lie: `u <u, d>` with `u = axis / |axis|`.

    `d` is the mean of the positives minus that of the negatives, so an alpha of 1 moves a negative as far along the
    axis as the positives are, whatever the method, and the sign is that of the data.
    """
    norm = axis.norm()
    unit = axis / torch.where(norm == 0, 1.0, norm)
    return unit * (unit @ difference)


@struct
class RowPair:
    """The rows of both sides."""

    positive: StateRows
    negative: StateRows

    def sort(self) -> "RowPair":
        """Both sides by text number, so that the order of reading leaves no trace."""
        return RowPair(self.positive.sort(), self.negative.sort())


class Kept(Method):
    """A method whose state is all rows. Its `finalize` begins with `state.sort()`."""

    def init(self, width: int) -> RowPair:
        return RowPair(StateRows.empty(width), StateRows.empty(width))

    def update(self, state: RowPair, positive: StateRows, negative: StateRows) -> RowPair:
        return self.merge(state, RowPair(positive, negative))

    def merge(self, first: RowPair, second: RowPair) -> RowPair:
        return RowPair(first.positive.concat(second.positive), first.negative.concat(second.negative))
