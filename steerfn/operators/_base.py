"""What an operator is: a pure function of a hidden state, built from immutable values.

`bind` does once what does not depend on the hidden state (moving a direction, scaling it, taking its
unit), so that the hot path only does arithmetic; calling an operator is binding and applying it.
"""

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from steerfn._errors import ShapeError, SteerError
from steerfn._finite import is_finite
from steerfn._site import Site, as_sites, resolve_sites
from steerfn._struct import map_children
from steerfn._types import Hidden, TokenMask
from steerfn._vector import SteeringVector, as_float
from steerfn.operators._info import Info, Tokens

Bound = Callable[[Hidden, Info], Hidden]
"""An operator at one site, prepared: `(hidden, info) -> hidden`."""


HOW = (
    "Write for example: class Double(sf.Operator): sites = (sf.resid_post[12],); and in it "
    "def bind(self, site, device=None): return lambda hidden, info: 2 * hidden."
)


class Steerable:
    """What operators and conditions share: immutable, made of vectors, resolvable against a model."""

    by_row: ClassVar[tuple[str, ...]] = ()
    """The fields that hold one number, or one for each row of the batch."""

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
        """The sites it acts on: those of the vectors, operators and conditions that it is made of."""
        return sites_of(self._parts())

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites whose hidden state it needs besides the one it acts on."""
        return tuple(dict.fromkeys(s for p in self._parts() if isinstance(p, Steerable) for s in p.reads))

    def resolve(self, n_layers: int) -> Any:
        """The same value with negative layers counted from 0."""
        return map_children(lambda c: c.resolve(n_layers) if isinstance(c, (SteeringVector, Steerable)) else c, self)


def sites_of(parts: tuple[Any, ...]) -> tuple[Site, ...]:
    """The sites of vectors, operators and conditions."""
    return tuple(dict.fromkeys(site for part in parts for site in part.sites))


def _check_call(function: Callable[..., Any], what: str, given: str, count: int) -> None:
    """Refuse a function of a subclass that cannot be called as it will be."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        raise SteerError(f"{what} is a function {inspect.signature(function)}, not one of {given}. {HOW}") from None


class Operator(Steerable):
    """A pure function `(hidden, info) -> hidden` at its sites, and the identity everywhere else.

    A subclass says where it acts, in `sites` or by the vectors that it holds as attributes, and what it does, in
    `bind`. The hidden state is `[batch, seq, width]`; the result has its shape, dtype and device; nothing is written
    in place.

    Raises:
        SteerError: a subclass without `bind`, or without a site.

    Example:
        >>> import torch, steerfn as sf
        >>> class Double(sf.Operator):
        ...     sites = (sf.resid_post[0],)
        ...
        ...     def bind(self, site, device=None):
        ...         return lambda hidden, info: 2 * hidden
        >>> h = torch.ones(1, 1, 2)
        >>> sf.at(sf.prompt, Double())(h, sf.Info.of(h))
        tensor([[[2., 2.]]])
    """

    formula: ClassVar[str] = ""
    _declared: tuple[Site, ...] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bind, sites = cls.__dict__.get("bind"), cls.__dict__.get("sites")
        if inspect.isfunction(bind):
            _check_call(bind, f"{cls.__name__}.bind", "itself, a site and a device", 3)
        if sites is not None and not hasattr(sites, "__get__") and "sites" not in inspect.get_annotations(cls):
            cls._declared = as_sites(sites)
            type.__delattr__(cls, "sites")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites it acts on: those that its class or its maker declares, else those of its parts."""
        if self._declared is not None:
            return self._declared
        if not (parts := self._parts()):
            raise SteerError(f"{type(self).__name__} acts at no site: it declares none and holds no vector. {HOW}")
        return sites_of(parts)

    def bind(self, site: Site, device: torch.device | str | None = None) -> Bound | None:
        """The operator prepared for one of its sites, resolved, or None where it is the identity."""
        del site, device
        if type(self).__call__ is Operator.__call__:
            raise SteerError(f"{type(self).__name__} does nothing: it has no `bind`. {HOW}")
        return self

    def bind_at(self, site: Site, device: torch.device | str | None = None) -> Bound | None:
        """The operator prepared for any resolved site: None where it does not act."""
        if not any(each.name == site.name for each in self.sites):
            return None
        bound = self.bind(site, device)
        if bound is not None and not callable(bound):
            raise SteerError(f"{type(self).__name__}.bind returned a {type(bound).__name__}, not a function. {HOW}")
        if inspect.isfunction(bound) and not torch.compiler.is_compiling():
            _check_call(bound, f"What {type(self).__name__}.bind returns", "a hidden state and its info", 2)
        return bound

    def resolve(self, n_layers: int) -> Any:
        """The same operator with negative layers counted from 0."""
        found = super().resolve(n_layers)
        if self._declared is not None:
            object.__setattr__(found, "sites", resolve_sites(self._declared, n_layers))
        return found

    def touched(self, tokens: Tokens) -> TokenMask:
        """The tokens that it may change, `[batch, seq]`: False is what it leaves alone whatever the state."""
        return torch.ones_like(tokens.index, dtype=torch.bool)

    def touched_by_parts(self, tokens: Tokens) -> TokenMask:
        """`touched` of an operator that changes only what the operators change of which it is made."""
        found = [part.touched(tokens) for part in self._parts() if isinstance(part, Operator)]
        return functools.reduce(torch.logical_or, found, torch.zeros_like(tokens.index, dtype=torch.bool))

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        """Apply to a hidden state `[batch, seq, width]`."""
        bound = self.bind_at(info.site, hidden.device)
        return hidden if bound is None else apply_step(bound, hidden, info)


def _declare_sites(operator: Operator, sites: Any) -> None:
    object.__setattr__(operator, "_declared", as_sites(sites))


# Set here, so that type checkers see a plain property, which subclasses may override, and `self.sites = ...` works too.
Operator.sites = Operator.sites.setter(_declare_sites)  # pyright: ignore


def apply_step(step: Bound, hidden: Hidden, info: Info) -> Hidden:
    """What a bound operator makes of a hidden state, computed outside `torch.autocast`.

    Inside it matrix products run in half precision, whatever the dtype of what they multiply.
    """
    kind = hidden.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return step(hidden, info)
    with torch.autocast(kind, enabled=False):
        return step(hidden, info)


MOST = torch.finfo(torch.float32).max
"""The largest strength: directions are scaled in float32 by default, where more is infinite."""


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
        if not abs(number := as_float(value)) <= MOST:
            raise ShapeError(f"{what} is {value}; it must be finite in float32.")
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
        raise ShapeError(f"{what} is {value.tolist()}; every value must be finite in float32.")
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
