"""Conditions: operators that act only where the hidden state says so."""

import abc
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from steerfn.operators._on_direction import Number, as_number, check_width, direction_at
from steerfn.operators._operator import Bound, Info, Operator, Steerable, as_operator, as_vector
from steerfn.values import (
    Hidden,
    ShapeError,
    Site,
    SteerError,
    SteeringVector,
    TokenMask,
    public,
    replace,
    static,
    struct,
    unit,
)


class Condition(Steerable, abc.ABC):
    """A pure predicate on hidden states, one answer for each token; combine with `|`, `&` and `~`.

    A condition whose vector has a direction at the operator's site is read there; one with a single
    direction elsewhere is read at that earlier site, in the same forward pass.

    Example:
        >>> import torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)})
        >>> between = sf.projection_above(v, 1.0) & ~sf.projection_above(v, 3.0)
        >>> h = torch.tensor([[[0.0], [2.0], [4.0]]])
        >>> sf.when(between, sf.ablate(v))(h, sf.Info.of(h)).flatten()
        tensor([0., 0., 4.])
    """

    @abc.abstractmethod
    def prepare(self, site: Site, device: Any) -> Any:
        """The condition bound to the operator's site: a callable `(hidden, info) -> [batch, seq]` booleans."""

    def __or__(self, other: "Condition") -> "Condition":
        return _Joined("|", (self, as_condition(other)))

    def __and__(self, other: "Condition") -> "Condition":
        return _Joined("&", (self, as_condition(other)))

    def __invert__(self) -> "Condition":
        return _Joined("~", (self,))


def as_condition(value: Any) -> Condition:
    """A condition; True and False are conditions too."""
    if isinstance(value, Condition):
        return value
    if isinstance(value, (bool, np.bool_)):
        return Always() if value else ~Always()
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
        score, threshold = h @ self.direction.to(device=h.device, dtype=h.dtype), self.threshold.to(h.device, h.dtype)
        if self.scale:
            # Multiplied out rather than divided: no NaN. The cosine of a zero state is 0, its score over 1.
            norm = torch.linalg.vector_norm(h, dim=-1)
            threshold = threshold * torch.where(norm == 0, torch.ones_like(norm), norm)
        return score > threshold


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
    """`<h, w> > threshold`, with `w` the vector's direction or its unit; `by_norm`, `<h, w> > threshold * |h|`."""

    of_unit: ClassVar[bool] = True
    by_norm: ClassVar[bool] = False
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

    def prepare(self, site: Site, device: Any) -> Any:
        read = self._site(site)
        if read.order > site.order:
            raise SteerError(
                f"A condition at {read} cannot gate an operator at {site}, which comes before it in the forward pass; "
                "read the condition at the same or an earlier site."
            )
        direction = direction_at(self.vector, read, device)
        assert direction is not None
        return _Test(
            direction=unit(direction) if self.of_unit else direction,
            threshold=self.threshold.to(direction.dtype),
            read=read,
            here=read == site,
            scale=self.by_norm,
        )


@struct
class CosineAbove(_OnVector):
    """See `cosine_above`."""

    by_norm = True


@struct
class ProjectionAbove(_OnVector):
    """See `projection_above`."""


@struct
class Probe(_OnVector):
    """See `probe`."""

    of_unit = False


@struct
class Always(Condition):
    """True for every token; its own bound form."""

    def prepare(self, site: Site, device: Any) -> Any:
        del site, device
        return self

    def __call__(self, hidden: Hidden, info: Info) -> TokenMask:
        del info
        return torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)


_JOIN: dict[str, Callable[..., Any]] = {"|": operator.or_, "&": operator.and_, "~": operator.invert}


@struct
class _Joined(Condition):
    """Conditions whose answers `|`, `&` or `~` joins; its bound form is the same of bound conditions."""

    join: str = static()
    parts: tuple[Any, ...]

    def prepare(self, site: Site, device: Any) -> Any:
        return replace(self, parts=tuple(part.prepare(site, device) for part in self.parts))

    def __call__(self, hidden: Hidden, info: Info) -> TokenMask:
        return _JOIN[self.join](*[part(hidden, info) for part in self.parts])


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


@public
def cosine_above(vector: SteeringVector, threshold: Number) -> Condition:
    """True for the tokens whose state has a cosine with `vector` above `threshold`: `<h, v> > t |h| |v|`.

    A zero state or a zero `vector` has cosine 0.

    Args:
        vector: read where the operator acts, or, if it has one other site, at that earlier site.
        threshold: between -1 and 1.

    Raises:
        SteerError: `vector` is not a vector or `threshold` no number.

    Source: Lee et al. 2024, "Programming Refusal with Conditional Activation Steering" (CAST).

    Example:
        >>> import torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[0]: torch.tensor([1.0, 0.0])})
        >>> h = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])  # cosines 1 and 0
        >>> sf.when(sf.cosine_above(v, 0.5), sf.ablate(v))(h, sf.Info.of(h))
        tensor([[[0., 0.],
                 [0., 9.]]])
    """
    return CosineAbove(as_vector(vector, "cosine_above"), _threshold(threshold, "The threshold of cosine_above"))


@public
def projection_above(vector: SteeringVector, threshold: Number) -> Condition:
    """True for the tokens whose projection on `vector` is above `threshold`: `<h, u> > t`, with `u = v / |v|`.

    Args:
        vector: read where the operator acts, or, if it has one other site, at that earlier site.
        threshold: in units of the hidden state.

    Raises:
        SteerError: `vector` is not a vector or `threshold` no number.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)}), torch.tensor([[[3.0], [5.0]]])
        >>> sf.when(sf.projection_above(v, 4.0), sf.add(v))(h, sf.Info.of(h)).flatten()
        tensor([3., 6.])
    """
    return ProjectionAbove(
        as_vector(vector, "projection_above"), _threshold(threshold, "The threshold of projection_above")
    )


@public
def probe(vector: SteeringVector, bias: Number = 0.0) -> Condition:
    """True for the tokens that a linear probe calls positive: `<h, v> + bias > 0` (logistic score above 1/2).

    Args:
        vector: the weights, such as `linear_probe` fits; read where the operator acts, or, if it has one other site, at
            that earlier site.
        bias: the intercept; `linear_probe` leaves it in `vector.metadata["bias"]`.

    Raises:
        SteerError: `vector` is not a vector or `bias` no number.

    Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)}), torch.tensor([[[3.0], [5.0]]])
        >>> sf.when(~sf.probe(v, bias=-4.0), sf.add(v))(h, sf.Info.of(h)).flatten()
        tensor([4., 5.])
    """
    return Probe(as_vector(vector, "probe"), -_threshold(bias, "The bias of probe"))


@public
def when(condition: Condition | bool, op: Operator) -> Operator:
    """Apply `op` to the tokens where `condition` holds: `h' = op(h)` there, `h' = h` (bit for bit) elsewhere.

    Args:
        condition: `cosine_above`, `projection_above`, `probe`, each token's own answer; `on_prompt(...)`, one answer
            for the whole row; a combination with `| & ~`; or a bool.
        op: any operator.

    Raises:
        SteerError: `condition` is not a condition, or `op` not an operator; at use, a condition that is read
            after the site it gates.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)}), torch.tensor([[[-1.0], [2.0]]])
        >>> sf.when(sf.projection_above(v, 0.0), sf.add(v))(h, sf.Info.of(h)).flatten()
        tensor([-1.,  3.])
    """
    return When(as_condition(condition), as_operator(op))
