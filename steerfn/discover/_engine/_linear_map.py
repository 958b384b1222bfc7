"""Linear maps from one model's states to another's, made of sums (least squares, ridge, orthogonal), and their fit."""

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn.discover._engine._moments import Sums
from steerfn.values import struct

PENALTIES = tuple(10.0**power for power in range(-8, 3))
"""Ridge penalties to choose from, in units of the mean variance of a source dimension."""
RANK = 1e-10
"""A variance below this share of the largest counts as zero: no map divides by it."""
ROUNDING = 1e-12
"""A variance below this share of the mean square is rounding of float32."""


@struct
class PairSums:
    """Sums over matched states of two models, float64.

    Attributes:
        source: of the source's states `x`, with second moments.
        target: of the target's states `y`.
        cross: of `x y^T`.
        squares: of `y^2` by dimension.
    """

    source: Sums
    target: Sums
    cross: Tensor
    squares: Tensor

    @classmethod
    def zero(cls, source: int, target: int) -> "PairSums":
        """The sums of nothing, for the widths of both."""
        sums = Sums.zero(target)
        return cls(Sums.zero(source, second=True), sums, sums.total.new_zeros(source, target), sums.total)

    def plus(self, x: Tensor, y: Tensor) -> "PairSums":
        """With more states, `[n, source]` and `[n, target]`."""
        return PairSums(
            self.source.plus(x), self.target.plus(y), self.cross + x.T @ y, self.squares + y.square().sum(0)
        )

    def merge(self, other: "PairSums") -> "PairSums":
        """The sums over the states of both."""
        return pytree.tree_map(torch.add, self, other)

    @property
    def cross_covariance(self) -> Tensor:
        """The covariance of the source's dimensions with the target's, divided by n."""
        return self.cross / self.source.count - torch.outer(self.source.mean, self.target.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each of the target's dimensions."""
        return (self.squares / self.target.count - self.target.mean.square()).clamp_min(0)


@struct
class LinearMap:
    """The affine map `y = W^T (x - a) + b`, of which a direction takes `W`.

    Attributes:
        weight: `[source width, target width]`.
        source: `a`, the source's mean.
        target: `b`, the target's.
    """

    weight: Tensor
    source: Tensor
    target: Tensor

    @classmethod
    def fit(cls, sums: PairSums, method: str, penalty: float) -> "LinearMap":
        """The map of a method, see `transfer`; the penalty is 0 but for "ridge"."""
        covariance, cross = sums.source.covariance, sums.cross_covariance
        if method == "orthogonal":
            left, _, right = torch.linalg.svd(cross, full_matrices=False)
            turn = left @ right
            length = (turn * (covariance @ turn)).sum()
            weight = turn * ((turn * cross).sum() / torch.where(length == 0, 1.0, length))
        else:
            variances, axes = torch.linalg.eigh(covariance)
            weight = axes @ (_inverse(variances, penalty).unsqueeze(1) * (axes.T @ cross))
        return cls(weight, sums.source.mean, sums.target.mean)

    def r2(self, sums: PairSums) -> tuple[float, float]:
        """The share of the variance of some states that the map predicts.

        Returns:
            The mean over the target's dimensions that vary, and the share of their variances' sum. Either is negative
            where their mean predicts better, and NaN where nothing varies.
        """
        xx, xy, yy = _around(sums, self.source, self.target)
        left = yy - 2 * (self.weight * xy).sum(0) + (self.weight * (xx @ self.weight)).sum(0)
        weights = _weights(sums)
        return float(1 - left @ weights), float(1 - left.sum() / sums.variance.sum())


def best_penalty(fit: PairSums, judge: PairSums, method: str) -> tuple[float, float]:
    """The penalty whose map predicts some states best that it was not made of, and its R^2, mean over dimensions.

    Args:
        fit: what maps are made of.
        judge: of other texts.
        method: as in `LinearMap.fit`; but for ridge there is one penalty, 0.
    """
    if method != "ridge":
        return 0.0, LinearMap.fit(fit, method, 0.0).r2(judge)[0]
    # In the source's principal axes a ridge map is diagonal, so two products judge every penalty.
    variances, axes = torch.linalg.eigh(fit.source.covariance)
    xx, xy, yy = _around(judge, fit.source.mean, fit.target.mean)
    weights, made = _weights(judge), axes.T @ fit.cross_covariance
    seen = (made * weights * (axes.T @ xy)).sum(1)
    square = (axes.T @ xx @ axes) * ((made * weights) @ made.T)
    inverse = torch.stack([_inverse(variances, penalty) for penalty in PENALTIES])
    fits = 1 - yy @ weights + 2 * inverse @ seen - ((inverse @ square) * inverse).sum(1)
    best = int(fits.argmax())
    return PENALTIES[best], float(fits[best])


def _inverse(variances: Tensor, penalty: float) -> Tensor:
    """`1 / (variance + penalty)` by axis; 0 where there is nothing to divide by."""
    known = variances > RANK * variances.max()
    shrunk = variances + penalty * variances.mean()
    return torch.where(known, 1 / torch.where(known, shrunk, 1.0), 0.0)


def _around(sums: PairSums, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of `x x^T`, of `x y^T` and of `y^2`, with states taken from some points."""
    dx, dy = sums.source.mean - source, sums.target.mean - target
    return (
        sums.source.covariance + torch.outer(dx, dx),
        sums.cross_covariance + torch.outer(dx, dy),
        sums.variance + dy.square(),
    )


def _weights(sums: PairSums) -> Tensor:
    """Weights of dimensions in the mean of R^2: one over variance and over how many vary, NaN where nothing does."""
    varies = sums.variance > ROUNDING * sums.squares / sums.target.count
    return torch.where(varies, 1 / torch.where(varies, sums.variance, 1.0), 0.0) / varies.sum()
