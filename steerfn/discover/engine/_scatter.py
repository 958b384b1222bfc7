"""Covariances of two sides from streamed sums: around the mean of all texts, or around the mean of each side."""

import torch
from torch import Tensor

from steerfn._struct import struct
from steerfn.discover.engine._moments import Sides
from steerfn.discover.engine._rows import Rows


@struct
class Scatter:
    """Counts and sums by side, and the sum of `x x^T` over both, float64."""

    sides: Sides
    outer: Tensor

    @classmethod
    def zero(cls, width: int) -> "Scatter":
        """The sums of no texts."""
        return cls(Sides.zero(width), torch.zeros(width, width, dtype=torch.float64))

    def plus(self, positive: Rows, negative: Rows) -> "Scatter":
        """With more texts."""
        values = torch.cat([positive.values, negative.values])
        return Scatter(self.sides.plus(positive, negative), self.outer + values.T @ values)

    @property
    def count(self) -> Tensor:
        """How many texts there are in all."""
        return self.sides.positive.count + self.sides.negative.count

    @property
    def second(self) -> Tensor:
        """The mean of `x x^T` over all texts, not centred."""
        return self.outer / self.count

    @property
    def pooled(self) -> Tensor:
        """The covariance of all texts around their common mean, divided by n."""
        mean = (self.sides.positive.total + self.sides.negative.total) / self.count
        return self.second - torch.outer(mean, mean)

    @property
    def within(self) -> Tensor:
        """The covariance of all texts, each around the mean of its side, divided by n."""
        around = (torch.outer(side.mean, side.total) for side in (self.sides.positive, self.sides.negative))
        return self.second - sum(around) / self.count
