"""`clamp`: a state's coordinate along a direction, held between bounds."""

import torch
from torch import Tensor

from steerfn.operators._on_direction import Number, OnDirection, along, as_number, shift
from steerfn.operators._operator import Operator, as_vector
from steerfn.values import ShapeError, SteeringVector, has_values, public, struct


@struct
class Clamp(OnDirection):
    """See `clamp`."""

    by_row = ("low", "high")
    number = "The value of clamp"
    low: Tensor
    high: Tensor

    @staticmethod
    def law(hidden: Tensor, h: Tensor, u: Tensor, low: Tensor, high: Tensor) -> Tensor:
        p = along(h, u)
        return shift(hidden, (torch.minimum(torch.maximum(p, low), high) - p) * u)


@public
def clamp(
    vector: SteeringVector, value: Number | None = None, *, min: Number | None = None, max: Number | None = None
) -> Operator:
    """Set or bound the projection on the direction: `h' = h + (c - <h, u>) u`.

    `c` is `value`; or, with `min` and `max`, `<h, u>` moved into `[min, max]`. `u = v / |v|`: the scale of
    `vector` does not matter, and a zero direction changes nothing.

    Args:
        vector: the vector.
        value: the projection to set, in the units of the hidden state: a number, a 0-d or a `[batch]` tensor.
        min: lower bound of the projection, instead of `value`.
        max: upper bound of the projection, instead of `value`.

    Raises:
        SteerError: `vector` is not a vector, or a bound is not a number or tensor.
        ShapeError: no bound at all, `value` with a bound, or `min` above `max`.

    Source: Templeton et al. 2024, "Scaling Monosemanticity" (feature clamping).

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([3.0, 0.0])}), torch.ones(1, 1, 2)
        >>> sf.clamp(v, 5.0)(h, sf.Info.of(h))
        tensor([[[5., 1.]]])
    """
    vector = as_vector(vector, "clamp")
    if value is not None:
        if min is not None or max is not None:
            raise ShapeError("clamp takes a value, or min and max, not both.")
        number = as_number(value, "The value of clamp")
        return Clamp(vector, number, number)
    if min is None and max is None:
        raise ShapeError("clamp needs a value, a min or a max: write clamp(v, 0.0) or clamp(v, max=4.0).")
    low = torch.tensor(-torch.inf) if min is None else as_number(min, "The min of clamp")
    high = torch.tensor(torch.inf) if max is None else as_number(max, "The max of clamp")
    if low.ndim and high.ndim and len(low) != len(high):
        raise ShapeError(f"clamp has {len(low)} values of min and {len(high)} of max; pass as many of each.")
    crossed = low > high.to(low.device)
    if has_values(crossed) and bool(crossed.any()):
        raise ShapeError(f"clamp has min={min} above max={max}; swap them.")
    return Clamp(vector, low, high)
