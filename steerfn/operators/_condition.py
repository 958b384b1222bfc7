"""Conditions: operators that act only where the hidden state says so."""

import abc
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn._errors import ShapeError, SteerError
from steerfn._site import Site
from steerfn._struct import struct
from steerfn._types import Hidden, TokenMask
from steerfn._vector import SteeringVector, unit
from steerfn.operators._base import (
    Bound,
    Operator,
    Steerable,
    as_number,
    as_operator,
    as_vector,
    check_width,
    direction_at,
)
from steerfn.operators._info import Info


class Condition(Steerable, abc.ABC):
    """A pure predicate on hidden states, one answer for each token; combine with `|`, `&` and `~`.

    A condition whose vector has a direction at the operator's site is read there; one with a single
    direction elsewhere is read at that earlier site, in the same forward pass.
    """

    @abc.abstractmethod
    def prepare(self, site: Site, device: Any) -> Any:
        """The condition bound to the operator's site: a callable `(hidden, info) -> [batch, seq]` booleans."""

    def __or__(self, other: "Condition") -> "Condition":
        return _Any(self, as_condition(other))

    def __and__(self, other: "Condition") -> "Condition":
        return _All(self, as_condition(other))

    def __invert__(self) -> "Condition":
        return _Negated(self)


def as_condition(value: Any) -> Condition:
    """A condition; True and False are conditions too."""
    if isinstance(value, Condition):
        return value
    if isinstance(value, (bool, np.bool_)):
        return Always() if value else _Negated(Always())
    raise SteerError(
        f"A condition is needed, not {value!r} of type {type(value).__name__}; use sf.cosine_above(v, 0.3), "
        "sf.projection_above(v, 4.0) or sf.probe(v, bias), combined with | & ~."
    )


@struct
class _Test:
    """A bound condition on one direction: a score of the hidden state, above a threshold or not."""

    direction: Tensor
    threshold: Tensor
    read: Any
    here: Any
    scale: Any

    def __call__(self, hidden: Hidden, info: Info) -> TokenMask:
        state = hidden if self.here else _state_at(self.read, info)
        check_width(self.direction, state, self.read)
        h = state.to(torch.promote_types(state.dtype, self.direction.dtype))
        score = h @ self.direction.to(device=h.device, dtype=h.dtype)
        if self.scale:
            # Multiplied out rather than divided: no NaN. The cosine of a zero state is 0, its score over 1.
            norm = torch.linalg.vector_norm(h, dim=-1)
            return score > self.threshold.to(h.device, h.dtype) * torch.where(norm == 0, torch.ones_like(norm), norm)
        return score > self.threshold.to(h.device, h.dtype)


def _state_at(site: Site, info: Info) -> Hidden:
    """The hidden state met at an earlier site."""
    for met, state in (info.reads or {}).items():  # by name: `torch.compile` finds no equal site in a dict
        if met.name == site.name:
            return state
    raise SteerError(
        f"A condition is read at {site}, but the hidden state there is not known at {info.site}; outside a model "
        "pass it as Info(site, tokens, reads={site: hidden})."
    )


@struct
class _OnVector(Condition):
    vector: SteeringVector
    threshold: Tensor

    def _site(self, site: Site) -> Site:
        """Where it is read for an operator at `site`."""
        if self.vector._at(site) is not None:
            return site
        if len(self.vector.sites) == 1:
            return self.vector.sites[0]
        raise SteerError(
            f"The condition's vector has no direction at {site} and several elsewhere; select the one to read with "
            "vector.select(site)."
        )

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.vector.sites

    @property
    def sites(self) -> tuple[Site, ...]:
        return ()

    def _test(self, site: Site, device: Any, direction_of: Any, scale: bool) -> _Test:
        read = self._site(site)
        if read.order > site.order:
            raise SteerError(
                f"A condition at {read} cannot gate an operator at {site}, which comes before it in the forward pass; "
                "read the condition at the same or an earlier site."
            )
        direction = direction_at(self.vector, read, device)
        assert direction is not None
        threshold = self.threshold.to(direction.dtype)
        return _Test(direction=direction_of(direction), threshold=threshold, read=read, here=read == site, scale=scale)


@struct
class CosineAbove(_OnVector):
    """See `cosine_above`."""

    def prepare(self, site: Site, device: Any) -> Any:
        return self._test(site, device, unit, scale=True)


@struct
class ProjectionAbove(_OnVector):
    """See `projection_above`."""

    def prepare(self, site: Site, device: Any) -> Any:
        return self._test(site, device, unit, scale=False)


@struct
class Probe(_OnVector):
    """See `probe`."""

    def prepare(self, site: Site, device: Any) -> Any:
        return self._test(site, device, lambda d: d, scale=False)


@struct
class Always(Condition):
    """True for every token."""

    def prepare(self, site: Site, device: Any) -> Any:
        del site, device
        return _Everywhere()


@struct
class _Everywhere:
    def __call__(self, hidden: Hidden, info: Info) -> TokenMask:
        del info
        return torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)


@struct
class _Any(Condition):
    first: Condition
    second: Condition

    def prepare(self, site: Site, device: Any) -> Any:
        return _AnyOf(first=self.first.prepare(site, device), second=self.second.prepare(site, device))


@struct
class _AnyOf:
    first: Any
    second: Any

    def __call__(self, hidden: Hidden, info: Info) -> TokenMask:
        return self.first(hidden, info) | self.second(hidden, info)


@struct
class _All(Condition):
    first: Condition
    second: Condition

    def prepare(self, site: Site, device: Any) -> Any:
        return _AllOf(first=self.first.prepare(site, device), second=self.second.prepare(site, device))


@struct
class _AllOf:
    first: Any
    second: Any

    def __call__(self, hidden: Hidden, info: Info) -> TokenMask:
        return self.first(hidden, info) & self.second(hidden, info)


@struct
class _Negated(Condition):
    inner: Condition

    def prepare(self, site: Site, device: Any) -> Any:
        return _NotOf(inner=self.inner.prepare(site, device))


@struct
class _NotOf:
    inner: Any

    def __call__(self, hidden: Hidden, info: Info) -> TokenMask:
        return ~self.inner(hidden, info)


@struct
class _Gated:
    inner: Any
    condition: Any

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        chosen = self.condition(hidden, info)
        unknown = None if info.decisions is None else info.decisions.unknown()
        out = torch.where(chosen.unsqueeze(-1), self.inner(hidden, info), hidden)
        # Where a condition on the prompt has no answer: not a number, so that acting on such a token is noticed.
        return out if unknown is None else torch.where(unknown, out.new_tensor(torch.nan), out)


@struct
class When(Operator):
    """See `when`."""

    condition: Condition
    operator: Operator

    touched = Operator.touched_by_parts

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        inner = self.operator.bind_at(site, device)
        return None if inner is None else _Gated(inner=inner, condition=self.condition.prepare(site, device))


def _threshold(value: Any, what: str) -> Tensor:
    threshold = as_number(value, what)
    if threshold.ndim:
        raise ShapeError(f"{what} is one number, not a tensor of shape {list(threshold.shape)}.")
    return threshold


def cosine_above(v: SteeringVector, threshold: Any) -> Condition:
    """True for the tokens whose state has a cosine with `v` above `threshold`: `<h, v> > t |h| |v|`.

    A zero state or a zero `v` has cosine 0.

    Raises:
        SteerError: `v` is not a vector or `threshold` no number.

    Source: Lee et al. 2024, "Programming Refusal with Conditional Activation Steering" (CAST).
    """
    return CosineAbove(as_vector(v, "cosine_above"), _threshold(threshold, "The threshold of cosine_above"))


def projection_above(v: SteeringVector, threshold: Any) -> Condition:
    """True for the tokens whose projection on `v` is above `threshold`: `<h, u> > t`, with `u = v / |v|`.

    Raises:
        SteerError: `v` is not a vector or `threshold` no number.
    """
    return ProjectionAbove(as_vector(v, "projection_above"), _threshold(threshold, "The threshold of projection_above"))


def probe(v: SteeringVector, bias: Any = 0.0) -> Condition:
    """True for the tokens that a linear probe calls positive: `<h, v> + bias > 0` (logistic score above 1/2).

    Raises:
        SteerError: `v` is not a vector or `bias` no number.
    """
    return Probe(as_vector(v, "probe"), -_threshold(bias, "The bias of probe"))


def when(condition: Any, op: Operator) -> Operator:
    """Apply `op` to the tokens where `condition` holds: `h' = op(h)` there, `h' = h` (bit for bit) elsewhere.

    Args:
        condition: `cosine_above`, `projection_above`, `probe`, each token's own answer; `on_prompt(...)`, one answer
            for the whole row; a combination with `| & ~`; or a bool.
        op: any operator.

    Raises:
        SteerError: `condition` is no condition or `op` no operator; at use, a condition that is read
            after the site it gates.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)}), torch.tensor([[[-1.0], [2.0]]])
        >>> sf.when(sf.projection_above(v, 0.0), sf.add(v))(h, sf.Info.of(h)).flatten()
        tensor([-1.,  3.])
    """
    return When(as_condition(condition), as_operator(op))
