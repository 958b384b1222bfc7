"""`add`: a vector added to a state."""

from typing import Any

from torch import Tensor

from steerfn.operators._on_direction import (
    MOST,
    Number,
    OnDirection,
    as_number,
    check_width,
    negative_zero,
    per_row_direction,
)
from steerfn.operators._operator import Bound, Info, Operator, as_vector
from steerfn.values import Hidden, ShapeError, Site, SteeringVector, is_finite, public, struct


@struct
class Shift:
    """Bound `add`: `h + delta`, with `delta` a `[width]` tensor or one for each row, `[rows, width]`."""

    delta: Tensor
    site: Any

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        check_width(self.delta, hidden, self.site)
        return hidden + per_row_direction(self.delta.to(hidden.dtype), hidden, info)


@struct
class Add(OnDirection):
    """See `add`."""

    by_row = ("alpha",)
    alpha: Tensor

    def bind_along(self, direction: Tensor, site: Site, held: tuple[Tensor, ...]) -> Bound:
        (alpha,) = held
        scaled = alpha.unsqueeze(-1) * direction if alpha.ndim else alpha * direction
        return Shift(delta=negative_zero(scaled), site=site)


@public
def add(vector: SteeringVector, alpha: Number = 1.0) -> Operator:
    """Add a steering vector: `h' = h + alpha * v`.

    Args:
        vector: the vector; at each of its sites its own direction is added.
        alpha: strength in units of `vector` (not normalised): a number, a 0-d tensor, or a `[batch]` tensor
            with one strength for each row of the batch.

    Raises:
        SteerError: `vector` is not a vector, or `alpha` not a finite number or a 0-d or `[batch]` tensor.
        ShapeError: `alpha * v` is more than float32 holds.

    Source: Turner et al. 2023, "Activation Addition"; Rimsky et al. 2024, "Contrastive Activation Addition".

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([1.0, 2.0])}), torch.zeros(1, 1, 2)
        >>> sf.add(v, 0.5)(h, sf.Info.of(h))
        tensor([[[0.5000, 1.0000]]])
    """
    vector, strength = as_vector(vector, "add"), as_number(alpha, "alpha")
    largest = strength.detach().abs().amax().double()
    for site, direction in vector._items():
        if not is_finite(direction.detach().double() * largest.to(direction.device), MOST):
            raise ShapeError(
                f"alpha {alpha} times the direction at {site}, whose norm is {vector.magnitude[site]:.3g}, is more "
                "than float32 holds; use a smaller one."
            )
    return Add(vector, strength)
