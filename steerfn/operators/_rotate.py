"""`rotate`: a state turned towards a direction, its norm kept."""

import torch
from torch import Tensor

from steerfn.operators._on_direction import (
    BoundLaw,
    Number,
    OnDirection,
    along,
    as_number,
    check_width,
    direction_at,
    is_zero,
    shift,
)
from steerfn.operators._operator import Bound, Operator, as_vector
from steerfn.values import ShapeError, Site, SteeringVector, public, struct, unit


@struct
class Rotate(OnDirection):
    """See `rotate`."""

    by_row = ("angle",)
    number = "The angle of rotate"
    angle: Tensor
    plane: tuple[SteeringVector, ...]  # at most one; None would be a leaf that transforms refuse

    @staticmethod
    def law(hidden: Tensor, h: Tensor, u: Tensor, angle: Tensor, *plane: Tensor) -> Tensor:
        return shift(hidden, _turn_in_plane(h, u, angle, *plane) if plane else _turn(h, u, angle))

    def bind_along(self, direction: Tensor, site: Site, held: tuple[Tensor, ...]) -> Bound:
        axes = _plane_of(direction, self.plane[0], site) if self.plane else (unit(direction),)
        return BoundLaw(Rotate, site, axes, held)


def _turn(h: Tensor, u: Tensor, angle: Tensor) -> Tensor:
    """The difference that turning `h` towards `u` in the plane of both adds to `h`."""
    # Every state has arrived long before an angle of 60, and exp would overflow soon after.
    speed = angle.clamp(-60, 60)
    largest = h.detach().abs().amax(-1, keepdim=True)
    size = torch.where(largest == 0, torch.ones_like(largest), largest)
    h = h / size
    p = along(h, u)
    across = h - p * u
    # The flow in closed form for a state of norm n at height p = <h, u>, as a change that is exactly 0
    # at angle 0:  p' - p = |across|^2 sinh(s) / d  and  across' / across - 1 = (n - d) / d
    # with d = n cosh(s) + p sinh(s) = ((n + p) e^s + (n - p) e^-s) / 2. The smaller of n + p and n - p is
    # |across|^2 over the larger one: a difference would leave nothing but rounding near the poles.
    square = (across * across).sum(-1, keepdim=True)
    upper = p >= 0
    larger = _safe_sqrt(p * p + square) + torch.where(upper, p, -p)
    larger = torch.where(larger == 0, torch.ones_like(larger), larger)
    up, down = torch.where(upper, larger, square / larger), torch.where(upper, square / larger, larger)
    half = torch.exp(speed / 2)
    d = (up * half * half + down / half / half) / 2
    rise = square * torch.sinh(speed) / d
    shrink = -torch.sinh(speed / 2) * (up * half - down / half) / d
    return torch.where(is_zero(u), torch.zeros_like(h), size * (rise * u + shrink * across))


def _turn_in_plane(h: Tensor, u: Tensor, angle: Tensor, w: Tensor) -> Tensor:
    """The difference that turning from `w` towards `u` by an angle adds to `h`."""
    x, y = along(h, u), along(h, w)
    cos, sin = torch.cos(angle) - 1, torch.sin(angle)
    return (x * cos + y * sin) * u + (y * cos - x * sin) * w


def _safe_sqrt(squared: Tensor) -> Tensor:
    """The root, with a finite gradient at 0."""
    return torch.where(squared == 0, torch.zeros_like(squared), torch.where(squared == 0, 1.0, squared).sqrt())


def _plane_of(direction: Tensor, other: SteeringVector, site: Site) -> tuple[Tensor, Tensor]:
    """Orthogonal units of the plane of a direction and another vector at a site; zeros where there is no plane."""
    second = direction_at(other, site, direction.device)
    if second is None:
        raise ShapeError(f"rotate(v, angle, plane=w) acts at {site}, but w has no direction there.")
    check_width(second, direction, site)
    u = unit(direction)
    second = unit(second.to(u.dtype))
    across = second - (second * u).sum() * u  # not `@`, which runs in half precision under autocast
    # Without two directions there is no plane: what rounding leaves of a parallel `w` is not one.
    flat = (u == 0).all() | (across.abs().amax() <= 64 * torch.finfo(u.dtype).eps)
    across = unit(across)
    across = unit(across - (across * u).sum() * u)
    return torch.where(flat, torch.zeros_like(u), u), torch.where(flat, torch.zeros_like(u), across)


@public
def rotate(vector: SteeringVector, angle: Number, *, plane: SteeringVector | None = None) -> Operator:
    """Turn the hidden state towards the direction; its norm is kept.

    Without `plane`, every state turns in the plane that it spans with `u = v / |v|`: its angle `phi` to
    `u` becomes `phi'` with `tan(phi' / 2) = exp(-angle) tan(phi / 2)`. A state orthogonal to `u` starts at
    one radian of turn for each radian of `angle`, no state overshoots, and turning by `-angle` undoes
    it exactly (turning in a plane that depends on the state by a fixed angle would not: states near `u`
    would pass it and come back on the other side).

    With `plane=w`, the component in the fixed plane of `vector` and `w` turns by exactly `angle`, from `w`
    towards `vector`, and the rest stays: `x' = x cos + y sin`, `y' = y cos - x sin` for the coordinates `x` along
    `u` and `y` along the part of `w` orthogonal to `u`.

    Args:
        vector: the vector to turn towards (away from, for a negative angle). A zero direction changes nothing.
        angle: radians: a number, a 0-d tensor, or a `[batch]` tensor.
        plane: the second axis of a fixed plane, with directions at the same sites. Where it is zero or
            parallel to `vector` there is no plane, and nothing turns.

    Raises:
        SteerError: `vector` or `plane` is not a vector, or `angle` is not a finite number.

    Source: Vu and Nguyen 2025, "Angular Steering" (fixed plane); the state-dependent turn is the gradient
    flow of the cosine with `u` on the sphere.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([1.0, 0.0])}), torch.tensor([[[0.0, 2.0]]])
        >>> sf.rotate(v, 0.5)(h, sf.Info.of(h)).norm()
        tensor(2.)
    """
    planes = () if plane is None else (as_vector(plane, "rotate(plane=)"),)
    return Rotate(as_vector(vector, "rotate"), as_number(angle, "The angle of rotate"), planes)
