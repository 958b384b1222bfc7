"""Laws along a direction: what they share, so that each of them is its formula.

`v` is the direction at the site, `u = v / |v|` (0 where v is 0), `h` the hidden state of one token.
"""

import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from steerfn.operators._operator import Bound, Info, Operator, Tokens
from steerfn.values import Hidden, ShapeError, Site, SteeringVector, as_float, is_finite, static, struct, unit

MOST = torch.finfo(torch.float32).max
"""The largest strength: directions are scaled in float32 by default, where more is infinite."""
Number = float | Tensor
"""A strength, an angle or a bound: a number, a 0-d tensor, or a `[batch]` tensor with one for each row."""
RANGE = "pass numbers from -3.4e38 to 3.4e38"


@struct
class OnDirection(Operator):
    """An operator that acts along the direction of its vector at a site: a subclass is the formula of its law.

    The fields that `by_row` names are the law's numbers, and `number` says in errors what they are.
    """

    number: ClassVar[str] = ""
    law: ClassVar[Callable[..., Tensor]]
    """`law(hidden, h, u, *numbers, *axes)`: the new hidden state, of `hidden` and of the same in the working dtype."""

    vector: SteeringVector

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        direction = direction_at(self.vector, site, device)
        if direction is None:
            return None
        held = tuple(getattr(self, name).to(direction.dtype).to(direction.device) for name in self.by_row)
        return self.bind_along(direction, site, held)

    def bind_along(self, direction: Tensor, site: Site, held: tuple[Tensor, ...]) -> Bound:
        """The operator prepared for a site where its vector has a direction, with the numbers of its law."""
        return BoundLaw(type(self), site, (unit(direction),), held)


@struct
class BoundLaw:
    """A law at one site.

    Attributes:
        kind: the operator's class, which has the formula.
        site: the site.
        axes: `u` and whatever other directions the law takes, each `[width]`, or one for each row, `[rows, width]`.
        numbers: its numbers, each 0-d or `[rows]`.
    """

    kind: type[OnDirection] = static()
    site: Any
    axes: tuple[Tensor, ...]
    numbers: tuple[Tensor, ...]

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        check_width(self.axes[0], hidden, self.site)
        work = torch.promote_types(hidden.dtype, self.axes[0].dtype)
        held = [per_row(number.to(work), hidden, info.tokens, self.kind.number) for number in self.numbers]
        u, *others = [per_row_direction(axis.to(work), hidden, info) for axis in self.axes]
        return self.kind.law(hidden, hidden.to(work), u, *held, *others)


def along(h: Tensor, axis: Tensor) -> Tensor:
    """Each token's coordinate along an axis, `[batch, seq, 1]`."""
    return (h @ axis).unsqueeze(-1) if axis.ndim == 1 else h @ axis.mT


def is_zero(axis: Tensor) -> Tensor:
    """Whether an axis is no direction, `[1]`, or `[batch, 1, 1]` of one for each row."""
    return (axis == 0).all(-1, keepdim=True)


def per_row(value: Tensor, hidden: Tensor, tokens: Tokens, what: str) -> Tensor:
    """A number, or one for each row of the batch, shaped to multiply `[batch, seq, width]`.

    Raises:
        ShapeError: as many values as there are neither rows nor prompts.
    """
    if value.ndim == 0:
        return value
    what = f"{what} has {value.shape[0]} values"
    return for_each_row(value, hidden, tokens, what).reshape(-1, *[1] * (hidden.ndim - 1))


def for_each_row(values: Tensor, hidden: Tensor, tokens: Tokens, what: str) -> Tensor:
    """One entry for each row of the batch, from one for each prompt: the copies of a prompt share its entry.

    Raises:
        ShapeError: another number of entries than there are prompts.
    """
    batch, copies = hidden.shape[0], tokens.copies
    if values.shape[0] * copies != batch:
        copied = f" ({batch // copies} prompts in {copies} copies each: beams, or several sequences)"
        raise ShapeError(
            f"{what}, but the batch has {batch} rows{copied if copies > 1 else ''}; pass one for each "
            f"{'prompt' if copies > 1 else 'row'}, or a single one."
        )
    return values if copies == 1 else values.repeat_interleave(copies, 0)


def per_row_direction(delta: Tensor, hidden: Tensor, info: Info) -> Tensor:
    """A direction to multiply `[batch, seq, width]` with: `[width]`, or `[batch, 1, width]` of one for each row."""
    if delta.ndim == 1:
        return delta
    what = f"There are {delta.shape[0]} strengths or rows of steering"
    return for_each_row(delta, hidden, info.tokens, what).unsqueeze(-2)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a delta is computed in: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def direction_at(vector: SteeringVector, site: Site, device: Any) -> Tensor | None:
    """A vector's direction at a site, on the device and in at least float32, or None."""
    direction = vector._at(site)
    if direction is None:
        return None
    return direction.to(compute_dtype(direction.dtype)).to(device)


def check_width(direction: Tensor, hidden: Tensor, site: Site) -> None:
    """Refuse a direction that is not as wide as the hidden state (with the fix, not torch's words)."""
    if direction.shape[-1] != hidden.shape[-1]:
        raise ShapeError(
            f"The direction at {site} has width {direction.shape[-1]}, but the hidden state there has width "
            f"{hidden.shape[-1]}: this vector was made for another model or another site."
        )


def shift(hidden: Tensor, delta: Tensor) -> Tensor:
    """`hidden + delta` in the dtype of `hidden`, and bit for bit `hidden` where `delta` is 0."""
    return hidden + negative_zero(delta.to(hidden.dtype))


def negative_zero(delta: Tensor) -> Tensor:
    """The same numbers with every zero made -0.0, the only float that leaves both 0.0 and -0.0 as they are.

    Arithmetic rather than `torch.where`, so that the gradient at 0 is that of the identity.
    """
    return -(0.0 - delta)


def as_number(value: Any, what: str) -> Tensor:
    """A strength or an angle as a tensor leaf: a float becomes 0-d, so that another value never recompiles.

    Raises:
        ShapeError: neither a number nor a 0-d or `[batch]` tensor, or one that is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Tensor)):
        raise ShapeError(
            f"{what} is a number, a 0-d tensor or a [batch] tensor, not {value!r} of type {type(value).__name__}."
        )
    if not isinstance(value, Tensor):
        if not abs(number := as_float(value)) <= MOST:
            raise ShapeError(f"{what} is {value}; it must be finite in float32: {RANGE}.")
        return torch.tensor(number, dtype=torch.float64)
    if (
        value.ndim > 1
        or not value.numel()
        or not (value.is_floating_point() or value.dtype in (torch.int32, torch.int64))
    ):
        raise ShapeError(
            f"{what} is a tensor of shape {list(value.shape)} and {value.dtype}; pass a 0-d tensor, or a [batch] "
            "tensor with one value for each row."
        )
    if not is_finite(value, MOST):
        raise ShapeError(f"{what} is {value.tolist()}; every value must be finite in float32: {RANGE}.")
    return value.clone()  # what happens to the caller's tensor later does not reach the operator
