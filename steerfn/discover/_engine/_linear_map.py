"""Linear maps from one model's states to another's, made of sums: least squares, ridge and orthogonal; and their fit."""

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn.discover._engine._moments import Sums
from steerfn.values import struct

PENALTIES = tuple(10.0**power for power in range(-8, 3))
"""Ridge penalties to choose from, in units of the mean variance of a source dimension."""
RANK = 1e-10
"""A variance below this share of the largest is none, which no map divides by."""
ROUNDING = 1e-12
"""A variance below this share of the mean square is rounding of float32."""


@struct
class PairSums:
    """Sums over matched states of two models, float64.

    Attributes:
        source: of the source's states, with second moments.
        target: of the target's states, those of several sites beside each other.
        cross: of `x y^T`.
        squares: of `y^2` by dimension.
    """

    source: Sums
    target: Sums
    cross: Tensor
    squares: Tensor

    @classmethod
    def zero(cls, width: int, columns: int) -> "PairSums":
        """The sums of nothing."""
        target = Sums.zero(columns)
        return cls(Sums.zero(width, second=True), target, target.total.new_zeros(width, columns), target.total)

    def plus(self, x: Tensor, y: Tensor) -> "PairSums":
        """With more states, `[n, width]` and `[n, columns]`."""
        return PairSums(
            self.source.plus(x), self.target.plus(y), self.cross + x.T @ y, self.squares + y.square().sum(0)
        )

    def merge(self, other: "PairSums") -> "PairSums":
        """The sums over the states of both."""
        return pytree.tree_map(torch.add, self, other)

    def columns(self, chosen: slice) -> "PairSums":
        """The sums of some of the target's columns."""
        target = Sums(self.target.count, self.target.total[chosen], ())
        return PairSums(self.source, target, self.cross[:, chosen], self.squares[chosen])

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
        """The map of a method, "least_squares", "ridge" or "orthogonal" (see `transfer`), which has one penalty or 0."""
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


def held_out_fits(fit: PairSums, judge: PairSums, widths: int, method: str) -> tuple[tuple[float, ...], Tensor]:
    """The fit of maps made of some sums, judged by others: the mean of R^2 over the target's dimensions.

    Args:
        fit: what the maps are made of.
        judge: of other texts.
        widths: how many columns a site has.
        method: as in `LinearMap.fit`.

    Returns:
        The penalties that were tried (0 alone, where the method has none), and the fits `[penalties, sites]`.
    """
    penalties = PENALTIES if method == "ridge" else (0.0,)
    sites = [slice(start, start + widths) for start in range(0, len(fit.squares), widths)]
    if method == "orthogonal":
        maps = [LinearMap.fit(fit.columns(each), method, 0.0).r2(judge.columns(each))[0] for each in sites]
        return penalties, torch.tensor([maps], dtype=torch.float64)
    # In the source's principal axes a ridge map is diagonal, so one product a site judges every penalty.
    variances, axes = torch.linalg.eigh(fit.source.covariance)
    xx, xy, yy = _around(judge, fit.source.mean, fit.target.mean)
    made, seen, square = axes.T @ fit.cross_covariance, axes.T @ xy, axes.T @ xx @ axes
    inverse = torch.stack([_inverse(variances, penalty) for penalty in penalties])
    fits = []
    for each in sites:
        weights = _weights(judge.columns(each))
        weighed = made[:, each] * weights
        explained = inverse @ (weighed * seen[:, each]).sum(1)
        size = ((inverse @ (square * (weighed @ made[:, each].T))) * inverse).sum(1)
        fits.append(1 - yy[each] @ weights + 2 * explained - size)
    return penalties, torch.stack(fits, 1)


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
    """What each dimension counts in the mean of R^2: one over its variance, and over how many vary; NaN where none do."""
    varies = sums.variance > ROUNDING * sums.squares / sums.target.count
    return torch.where(varies, 1 / torch.where(varies, sums.variance, 1.0), 0.0) / varies.sum()
