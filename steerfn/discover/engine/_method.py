"""What a discovery method is: a mergeable statistic of activations, and a direction made of it.

States are immutable pytrees of float64 tensors. `merge` makes them independent of batches, of their order, of how
work is split over processes, and lets a run be cut and resumed.
"""

import abc
from typing import Any, ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn.discover.engine._folds import Texts
from steerfn.discover.engine._rows import Rows


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
    def update(self, state: Any, positive: Rows, negative: Rows) -> Any:
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

    def of(self, positive: Rows, negative: Rows) -> Tensor:
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
