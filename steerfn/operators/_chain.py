"""Operators made of operators: chain, identity, renorm."""

from typing import Any

import torch
from torch import Tensor

from steerfn.operators._operator import Bound, Info, Operator, Steerable, as_operator
from steerfn.values import Hidden, Site, public, struct


@struct
class _Sequence:
    steps: tuple[Any, ...]

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        for step in self.steps:
            hidden = step(hidden, info)
        return hidden


@struct
class Chain(Operator):
    """See `chain`."""

    operators: tuple[Operator, ...]

    sites = Steerable.sites  # pyright: ignore[reportIncompatibleMethodOverride]  # none at all are fine here
    touched = Operator.touched_by_parts

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        return in_sequence(tuple(op.bind_at(site, device) for op in self.operators))


def in_sequence(steps: tuple[Bound | None, ...]) -> Bound | None:
    """Bound operators one after the other; None where nothing is left to do."""
    acting = tuple(step for step in steps if step is not None)
    return (acting[0] if len(acting) == 1 else _Sequence(steps=acting)) if acting else None


@struct
class _Renormed:
    inner: Any

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        out = self.inner(hidden, info)
        work = torch.promote_types(hidden.dtype, torch.float32)
        before, after = _norm(hidden.to(work)), _norm(out.to(work))
        # An unchanged token has the ratio x / x = 1 and keeps all its bits; a zero state has nothing to keep.
        ratio = before / torch.where(after == 0, torch.ones_like(after), after)
        return (out.to(work) * ratio).to(out.dtype)


def _norm(h: Tensor) -> Tensor:
    """Norm along the last axis, safe against overflow, with a finite gradient at 0.

    Contiguous, so that equal states have bitwise equal norms however they lie in memory.
    """
    h = h.contiguous()
    largest = h.detach().abs().amax(-1, keepdim=True)
    largest = torch.where(largest == 0, torch.ones_like(largest), largest)
    squared = (h / largest).square().sum(-1, keepdim=True)
    return largest * torch.where(squared == 0, squared, torch.where(squared == 0, 1.0, squared).sqrt())


@struct
class Renorm(Operator):
    """See `renorm`."""

    operator: Operator

    touched = Operator.touched_by_parts

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        inner = self.operator.bind_at(site, device)
        return None if inner is None else _Renormed(inner=inner)


identity = Chain(())
"""The operator that changes nothing, `h' = h`: the empty chain."""


@public
def chain(*operators: Operator) -> Operator:
    """One operator after the other: `h' = op_n(... op_2(op_1(h)))` at every site.

    `chain()` is the identity; chaining is associative. Operators at different sites act where they are.

    Args:
        operators: in the order in which they act.

    Raises:
        SteerError: something that is not an operator.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(2)}), torch.zeros(1, 1, 2)
        >>> sf.chain(sf.add(v), sf.ablate(v))(h, sf.Info.of(h)).abs().max() < 1e-6
        tensor(True)
    """
    return Chain(tuple(as_operator(op) for op in operators))


@public
def renorm(op: Operator) -> Operator:
    """Apply `op` and give each token's state back the norm it had: `h' = op(h) |h| / |op(h)|`.

    A state that `op` turns to zero stays zero.

    Args:
        op: any operator.

    Raises:
        SteerError: `op` is not an operator.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(2)}), torch.tensor([[[3.0, 4.0]]])
        >>> sf.renorm(sf.add(v, 9.0))(h, sf.Info.of(h)).norm()
        tensor(5.)
    """
    return Renorm(as_operator(op))
