"""Operators made of one steering vector: add, ablate, project, clamp, rotate.

`v` is the direction at the site, `u = v / |v|` (0 where v is 0), `h` the hidden state of one token.
"""

from typing import Any

import torch
from torch import Tensor

from steerfn._errors import ShapeError
from steerfn._finite import has_values, is_finite
from steerfn._site import Site
from steerfn._struct import struct
from steerfn._types import Hidden
from steerfn._vector import SteeringVector, unit
from steerfn.operators._base import (
    MOST,
    Bound,
    Operator,
    as_number,
    as_vector,
    check_width,
    direction_at,
    negative_zero,
    shifted,
)
from steerfn.operators._info import Info, per_row


@struct
class Shift:
    """Bound `add`: `h + delta`, with `delta` a `[width]` tensor or one for each row, `[rows, width]`."""

    delta: Tensor
    site: Any

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        check_width(self.delta, hidden, self.site)
        delta = self.delta.to(hidden.dtype)
        if delta.ndim == 1:
            return hidden + delta
        return hidden + per_row_direction(delta, hidden, info)


def per_row_direction(delta: Tensor, hidden: Tensor, info: Info) -> Tensor:
    """A `[rows, width]` tensor against a `[batch, seq, width]` hidden state."""
    copies = info.tokens.copies
    if delta.shape[0] * copies == hidden.shape[0] and copies > 1:
        delta = delta.repeat_interleave(copies, 0)
    elif delta.shape[0] != hidden.shape[0]:
        raise ShapeError(
            f"There are {delta.shape[0]} strengths or rows of steering, but the batch has {hidden.shape[0]} rows; "
            "pass one for each row, or a single one."
        )
    return delta.unsqueeze(-2)


@struct
class Add(Operator):
    """See `add`."""

    by_row = ("alpha",)
    vector: SteeringVector
    alpha: Tensor

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        direction = direction_at(self.vector, site, device)
        if direction is None:
            return None
        alpha = self.alpha.to(direction.dtype).to(direction.device)
        scaled = alpha.unsqueeze(-1) * direction if alpha.ndim else alpha * direction
        return Shift(delta=negative_zero(scaled), site=site)


@struct
class _OnUnit:
    """A bound operator that works on the projection of the hidden state on a unit direction.

    `unit` is a `[width]` tensor or one for each row, `[rows, width]`; so is every axis beside it, and each number is
    0-d or `[rows]`.
    """

    unit: Tensor
    site: Any

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        check_width(self.unit, hidden, self.site)
        work = torch.promote_types(hidden.dtype, self.unit.dtype)
        return self._apply(hidden, hidden.to(work), _axis(self.unit, hidden, work, info), info)

    def _apply(self, hidden: Tensor, h: Tensor, u: Tensor, info: Info) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no arithmetic")


def _axis(axis: Tensor, hidden: Tensor, work: torch.dtype, info: Info) -> Tensor:
    """A direction to multiply `[batch, seq, width]` with: `[width]`, or `[batch, 1, width]` of one for each row."""
    axis = axis.to(work)
    return axis if axis.ndim == 1 else per_row_direction(axis, hidden, info)


def _along(h: Tensor, axis: Tensor) -> Tensor:
    """Each token's coordinate along an axis, `[batch, seq, 1]`."""
    return (h @ axis).unsqueeze(-1) if axis.ndim == 1 else h @ axis.mT


def _is_zero(axis: Tensor) -> Tensor:
    """Whether an axis is no direction, `[1]`, or `[batch, 1, 1]` of one for each row."""
    return (axis == 0).all(-1, keepdim=True)


@struct
class _Ablated(_OnUnit):
    def _apply(self, hidden: Tensor, h: Tensor, u: Tensor, info: Info) -> Tensor:
        return shifted(hidden, -_along(h, u) * u)


@struct
class Ablate(Operator):
    """See `ablate`."""

    vector: SteeringVector

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        direction = direction_at(self.vector, site, device)
        return None if direction is None else _Ablated(unit=unit(direction), site=site)


@struct
class _Projected(_OnUnit):
    def _apply(self, hidden: Tensor, h: Tensor, u: Tensor, info: Info) -> Tensor:
        return torch.where(_is_zero(u), hidden, (_along(h, u) * u).to(hidden.dtype))


@struct
class Project(Operator):
    """See `project`."""

    vector: SteeringVector

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        direction = direction_at(self.vector, site, device)
        return None if direction is None else _Projected(unit=unit(direction), site=site)


@struct
class _Clamped(_OnUnit):
    low: Tensor
    high: Tensor

    def _apply(self, hidden: Tensor, h: Tensor, u: Tensor, info: Info) -> Tensor:
        low, high = (per_row(b.to(h.dtype), h, info.tokens, "The value of clamp") for b in (self.low, self.high))
        along = _along(h, u)
        return shifted(hidden, (torch.minimum(torch.maximum(along, low), high) - along) * u)


@struct
class Clamp(Operator):
    """See `clamp`."""

    by_row = ("low", "high")
    vector: SteeringVector
    low: Tensor
    high: Tensor

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        direction = direction_at(self.vector, site, device)
        if direction is None:
            return None
        low, high = (b.to(direction.dtype).to(direction.device) for b in (self.low, self.high))
        return _Clamped(unit=unit(direction), site=site, low=low, high=high)


@struct
class _Turned(_OnUnit):
    angle: Tensor

    def _apply(self, hidden: Tensor, h: Tensor, u: Tensor, info: Info) -> Tensor:
        # Every state has arrived long before an angle of 60, and exp would overflow soon after.
        speed = per_row(self.angle.to(h.dtype), h, info.tokens, "The angle of rotate").clamp(-60, 60)
        largest = h.detach().abs().amax(-1, keepdim=True)
        size = torch.where(largest == 0, torch.ones_like(largest), largest)
        h = h / size
        along = _along(h, u)
        across = h - along * u
        # The flow in closed form for a state of norm n at height p = <h, u>, as a change that is exactly 0
        # at angle 0:  p' - p = |across|^2 sinh(s) / d  and  across' / across - 1 = (n - d) / d
        # with d = n cosh(s) + p sinh(s) = ((n + p) e^s + (n - p) e^-s) / 2. The smaller of n + p and n - p is
        # |across|^2 over the larger one: a difference would leave nothing but rounding near the poles.
        square = (across * across).sum(-1, keepdim=True)
        upper = along >= 0
        larger = _safe_sqrt(along * along + square) + torch.where(upper, along, -along)
        larger = torch.where(larger == 0, torch.ones_like(larger), larger)
        up, down = torch.where(upper, larger, square / larger), torch.where(upper, square / larger, larger)
        half = torch.exp(speed / 2)
        d = (up * half * half + down / half / half) / 2
        rise = square * torch.sinh(speed) / d
        shrink = -torch.sinh(speed / 2) * (up * half - down / half) / d
        return shifted(hidden, torch.where(_is_zero(u), torch.zeros_like(h), size * (rise * u + shrink * across)))


@struct
class _TurnedInPlane(_OnUnit):
    angle: Tensor
    second: Tensor

    def _apply(self, hidden: Tensor, h: Tensor, u: Tensor, info: Info) -> Tensor:
        angle = per_row(self.angle.to(h.dtype), h, info.tokens, "The angle of rotate")
        w = _axis(self.second, hidden, h.dtype, info)
        x, y = _along(h, u), _along(h, w)
        cos, sin = torch.cos(angle) - 1, torch.sin(angle)
        return shifted(hidden, (x * cos + y * sin) * u + (y * cos - x * sin) * w)


def _safe_sqrt(squared: Tensor) -> Tensor:
    """The root, with a finite gradient at 0."""
    return torch.where(squared == 0, torch.zeros_like(squared), torch.where(squared == 0, 1.0, squared).sqrt())


@struct
class Rotate(Operator):
    """See `rotate`."""

    by_row = ("angle",)
    vector: SteeringVector
    angle: Tensor
    plane: tuple[SteeringVector, ...]  # at most one; None would be a leaf that transforms refuse

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        direction = direction_at(self.vector, site, device)
        if direction is None:
            return None
        u, angle = unit(direction), self.angle.to(direction.dtype).to(direction.device)
        if not self.plane:
            return _Turned(unit=u, site=site, angle=angle)
        second = direction_at(self.plane[0], site, device)
        if second is None:
            raise ShapeError(f"rotate(v, angle, plane=w) acts at {site}, but w has no direction there.")
        check_width(second, direction, site)
        second = unit(second.to(u.dtype))
        across = second - (second * u).sum() * u  # not `@`, which runs in half precision under autocast
        # Without two directions there is no plane: what rounding leaves of a parallel `w` is not one.
        flat = (u == 0).all() | (across.abs().amax() <= 64 * torch.finfo(u.dtype).eps)
        across = unit(across)
        across = unit(across - (across * u).sum() * u)
        u, across = (torch.where(flat, torch.zeros_like(axis), axis) for axis in (u, across))
        return _TurnedInPlane(unit=u, site=site, angle=angle, second=across)


def add(v: SteeringVector, alpha: Any = 1.0) -> Operator:
    """Add a steering vector: `h' = h + alpha * v`.

    Args:
        v: the vector; at each of its sites its own direction is added.
        alpha: strength in units of `v` (not normalised): a number, a 0-d tensor, or a `[batch]` tensor
            with one strength for each row of the batch.

    Raises:
        SteerError: `v` is not a vector, or `alpha` not a finite number or a 0-d or `[batch]` tensor.

    Source: Turner et al. 2023, "Activation Addition"; Rimsky et al. 2024, "Contrastive Activation Addition".

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([1.0, 2.0])}), torch.zeros(1, 1, 2)
        >>> sf.add(v, 0.5)(h, sf.Info.of(h))
        tensor([[[0.5000, 1.0000]]])
    """
    v, strength = as_vector(v, "add"), as_number(alpha, "alpha")
    largest = strength.detach().abs().amax().double()
    for site, direction in zip(v.sites, v._directions, strict=True):
        if not is_finite(direction.detach().double() * largest.to(direction.device), MOST):
            raise ShapeError(
                f"alpha {alpha} times the direction at {site}, whose norm is {v.magnitude[site]:.3g}, is more than "
                "float32 holds; use a smaller one."
            )
    return Add(v, strength)


def ablate(v: SteeringVector) -> Operator:
    """Remove the direction from the hidden state: `h' = h - <h, u> u`, with `u = v / |v|`.

    The scale of `v` does not matter; a zero direction changes nothing.

    Raises:
        SteerError: `v` is not a vector.

    Source: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction".

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([3.0, 0.0])}), torch.ones(1, 1, 2)
        >>> sf.ablate(v)(h, sf.Info.of(h))
        tensor([[[0., 1.]]])
    """
    return Ablate(as_vector(v, "ablate"))


def project(v: SteeringVector) -> Operator:
    """Keep only the direction: `h' = <h, u> u`, with `u = v / |v|`; the complement of `ablate`.

    A zero direction changes nothing.

    Raises:
        SteerError: `v` is not a vector.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([3.0, 0.0])}), torch.ones(1, 1, 2)
        >>> sf.project(v)(h, sf.Info.of(h))
        tensor([[[1., 0.]]])
    """
    return Project(as_vector(v, "project"))


def clamp(v: SteeringVector, value: Any = None, *, min: Any = None, max: Any = None) -> Operator:
    """Set or bound the projection on the direction: `h' = h + (c - <h, u>) u`.

    `c` is `value`; or, with `min` and `max`, `<h, u>` moved into `[min, max]`. `u = v / |v|`: the scale of
    `v` does not matter, and a zero direction changes nothing.

    Args:
        v: the vector.
        value: the projection to set, in the units of the hidden state: a number, a 0-d or a `[batch]` tensor.
        min: lower bound of the projection, instead of `value`.
        max: upper bound of the projection, instead of `value`.

    Raises:
        SteerError: `v` is not a vector, no bound at all, `value` with a bound, or `min` above `max`.

    Source: Templeton et al. 2024, "Scaling Monosemanticity" (feature clamping).

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([3.0, 0.0])}), torch.ones(1, 1, 2)
        >>> sf.clamp(v, 5.0)(h, sf.Info.of(h))
        tensor([[[5., 1.]]])
    """
    v = as_vector(v, "clamp")
    if value is not None:
        if min is not None or max is not None:
            raise ShapeError("clamp takes a value, or min and max, not both.")
        number = as_number(value, "The value of clamp")
        return Clamp(v, number, number)
    if min is None and max is None:
        raise ShapeError("clamp needs a value, a min or a max: write clamp(v, 0.0) or clamp(v, max=4.0).")
    low = torch.tensor(-torch.inf) if min is None else as_number(min, "The min of clamp")
    high = torch.tensor(torch.inf) if max is None else as_number(max, "The max of clamp")
    if low.ndim and high.ndim and len(low) != len(high):
        raise ShapeError(f"clamp has {len(low)} values of min and {len(high)} of max; pass as many of each.")
    crossed = low > high.to(low.device)
    if has_values(crossed) and bool(crossed.any()):
        raise ShapeError(f"clamp has min={min} above max={max}; swap them.")
    return Clamp(v, low, high)


def rotate(v: SteeringVector, angle: Any, *, plane: SteeringVector | None = None) -> Operator:
    """Turn the hidden state towards the direction; its norm is kept.

    Without `plane`, every state turns in the plane that it spans with `u = v / |v|`: its angle `phi` to
    `u` becomes `phi'` with `tan(phi' / 2) = exp(-angle) tan(phi / 2)`. A state orthogonal to `u` starts at
    one radian of turn for each radian of `angle`, no state overshoots, and turning by `-angle` undoes
    it exactly (turning in a plane that depends on the state by a fixed angle would not: states near `u`
    would pass it and come back on the other side).

    With `plane=w`, the component in the fixed plane of `v` and `w` turns by exactly `angle`, from `w`
    towards `v`, and the rest stays: `x' = x cos + y sin`, `y' = y cos - x sin` for the coordinates `x` along
    `u` and `y` along the part of `w` orthogonal to `u`.

    Args:
        v: the vector to turn towards (away from, for a negative angle). A zero direction changes nothing.
        angle: radians: a number, a 0-d tensor, or a `[batch]` tensor.
        plane: the second axis of a fixed plane, with directions at the same sites. Where it is zero or
            parallel to `v` there is no plane, and nothing turns.

    Raises:
        SteerError: `v` or `plane` is not a vector, or `angle` is no finite number.

    Source: Vu and Nguyen 2025, "Angular Steering" (fixed plane); the state-dependent turn is the gradient
    flow of the cosine with `u` on the sphere.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([1.0, 0.0])}), torch.tensor([[[0.0, 2.0]]])
        >>> sf.rotate(v, 0.5)(h, sf.Info.of(h)).norm()
        tensor(2.)
    """
    planes = () if plane is None else (as_vector(plane, "rotate(plane=)"),)
    return Rotate(as_vector(v, "rotate"), as_number(angle, "The angle of rotate"), planes)
