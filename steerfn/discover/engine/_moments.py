"""Sums that a direction needs: counts, sums and second moments of the two sides, or of the differences of pairs."""

import torch
from torch import Tensor

from steerfn._struct import struct
from steerfn.discover.engine._rows import Rows


@struct
class Sums:
    """Count, sum and second moment of some vectors, float64. `outer` is empty where it is not wanted."""

    count: Tensor
    total: Tensor
    outer: tuple[Tensor, ...]

    @classmethod
    def zero(cls, width: int, *, second: bool = False) -> "Sums":
        """The sums of nothing."""
        outer = (torch.zeros(width, width, dtype=torch.float64),) if second else ()
        return cls(torch.zeros((), dtype=torch.float64), torch.zeros(width, dtype=torch.float64), outer)

    def plus(self, values: Tensor) -> "Sums":
        """With more vectors, `[n, width]`."""
        return Sums(
            self.count + values.shape[0],
            self.total + values.sum(0),
            tuple(outer + values.T @ values for outer in self.outer),
        )

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.total / self.count

    @property
    def second(self) -> Tensor:
        """The mean of `x x^T`, not centred."""
        return self.outer[0] / self.count

    @property
    def covariance(self) -> Tensor:
        """The covariance, divided by n."""
        return self.second - torch.outer(self.mean, self.mean)


@struct
class Sides:
    """The sums of the positive and of the negative texts."""

    positive: Sums
    negative: Sums

    @classmethod
    def zero(cls, width: int, *, second: bool = False) -> "Sides":
        """The sums of no texts."""
        return cls(Sums.zero(width, second=second), Sums.zero(width, second=second))

    def plus(self, positive: Rows, negative: Rows) -> "Sides":
        """With more texts."""
        return Sides(self.positive.plus(positive.values), self.negative.plus(negative.values))

    @property
    def difference(self) -> Tensor:
        """The mean of the positives minus that of the negatives."""
        return self.positive.mean - self.negative.mean
