"""What an operator is: a pure function of a hidden state, built from immutable values.

`bind` does once what does not depend on the hidden state (moving a direction, scaling it, taking its
unit), so that the hot path only does arithmetic; calling an operator is binding and applying it.
"""

import abc
import functools
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from steerfn._errors import ShapeError, SteerError
from steerfn._site import Site
from steerfn._struct import map_children
from steerfn._types import Hidden, TokenMask
from steerfn._vector import SteeringVector, as_float
from steerfn.operators._info import Info, Tokens

Bound = Callable[[Hidden, Info], Hidden]
"""An operator at one site, prepared: `(hidden, info) -> hidden`."""


class Steerable:
    """What operators and conditions share: immutable, made of vectors, resolvable against a model."""

    def _parts(self) -> tuple[Any, ...]:
        """The vectors, operators and conditions it is made of."""
        found: list[Any] = []

        def note(child: Any) -> Any:
            if isinstance(child, (SteeringVector, Steerable)):
                found.append(child)
            return child

        map_children(note, self)
        return tuple(found)

    @property
    def vectors(self) -> tuple[SteeringVector, ...]:
        """Every steering vector in it."""
        return tuple(v for p in self._parts() for v in ((p,) if isinstance(p, SteeringVector) else p.vectors))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites it acts on."""
        return tuple(dict.fromkeys(s for p in self._parts() for s in p.sites))

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites whose hidden state it needs besides the one it acts on."""
        return tuple(dict.fromkeys(s for p in self._parts() if isinstance(p, Steerable) for s in p.reads))

    def resolve(self, n_layers: int) -> Any:
        """The same value with negative layers counted from 0."""
        return map_children(lambda c: c.resolve(n_layers) if isinstance(c, (SteeringVector, Steerable)) else c, self)


class Operator(Steerable, abc.ABC):
    """A pure function `(hidden, info) -> hidden` at its sites, and the identity everywhere else.

    Subclasses are frozen structs that define `bind`. The hidden state is `[batch, seq, width]`; the
    result has its shape, dtype and device; nothing is written in place.
    """

    formula: ClassVar[str] = ""

    @abc.abstractmethod
    def bind(self, site: Site, device: torch.device | str | None = None) -> Bound | None:
        """The operator prepared for one resolved site, or None where it is the identity."""

    def touched(self, tokens: Tokens) -> TokenMask:
        """The tokens that it may change, `[batch, seq]`: False is what it leaves alone whatever the state."""
        return torch.ones_like(tokens.index, dtype=torch.bool)

    def touched_by_parts(self, tokens: Tokens) -> TokenMask:
        """`touched` of an operator that changes only what the operators change of which it is made."""
        found = [part.touched(tokens) for part in self._parts() if isinstance(part, Operator)]
        return functools.reduce(torch.logical_or, found, torch.zeros_like(tokens.index, dtype=torch.bool))

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        """Apply to a hidden state `[batch, seq, width]`."""
        bound = self.bind(info.site, hidden.device)
        return hidden if bound is None else bound(hidden, info)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a delta is computed in: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def direction_at(vector: SteeringVector, site: Site, device: Any) -> Tensor | None:
    """A vector's direction at a site, on the device and in at least float32, or None."""
    direction = vector.at(site)
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


def shifted(hidden: Tensor, delta: Tensor) -> Tensor:
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
        # Directions are scaled in float32 by default, where more than its largest number is infinite.
        if not abs(number := as_float(value)) <= torch.finfo(torch.float32).max:
            raise ShapeError(f"{what} is {value}; it must be finite in float32.")
        return torch.tensor(number, dtype=torch.float64)
    if value.ndim > 1 or not (value.is_floating_point() or value.dtype in (torch.int32, torch.int64)):
        raise ShapeError(
            f"{what} is a tensor of shape {list(value.shape)} and {value.dtype}; pass a 0-d tensor, or a [batch] "
            "tensor with one value for each row."
        )
    return value.clone()  # what happens to the caller's tensor later does not reach the operator


def as_operator(value: Any) -> Operator:
    """An operator, or a clear refusal."""
    if isinstance(value, Operator):
        return value
    raise SteerError(
        f"An operator is needed, not a {type(value).__name__}; wrap a vector as sf.add(v, alpha) or sf.ablate(v)."
    )


def as_vector(value: Any, where: str) -> SteeringVector:
    """A steering vector, or a clear refusal."""
    if isinstance(value, SteeringVector):
        return value
    raise SteerError(
        f"{where} takes a SteeringVector, not a {type(value).__name__}; make one with "
        "sf.SteeringVector({sf.resid_post[12]: tensor}) or load it with sf.load(path)."
    )
