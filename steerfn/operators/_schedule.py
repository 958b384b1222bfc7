"""Schedules: a strength that depends on which generated token a position predicts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.operators._on_direction import MOST, per_row_direction, shift
from steerfn.operators._operator import Bound, Info, Operator, Tokens, as_operator
from steerfn.values import (
    Hidden,
    ShapeError,
    Site,
    SteerError,
    TokenMask,
    finite_number,
    is_finite,
    positive_int,
    public,
    static,
    struct,
)


@struct
class _Scheduled:
    inner: Any
    strengths: Any
    function: Any

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        index = info.tokens.generated_index
        step = index.clamp_min(0)
        if self.strengths:
            strengths = self.strengths[0].to(step.device)
            step = step.clamp_max(strengths.shape[-1] - 1)
            if strengths.ndim == 1:
                strength = strengths[step]
            else:  # one schedule for each row
                strength = per_row_direction(strengths, hidden, info).squeeze(-2).gather(1, step)
        else:
            strength = self.function(step)
            if not isinstance(strength, Tensor) or strength.shape not in ((), step.shape):
                raise ShapeError(
                    f"The schedule returned {strength!r:.80}; given token indices of shape {list(step.shape)} it must "
                    "return a tensor of that shape."
                )
        out = self.inner(hidden, info)
        work = torch.promote_types(hidden.dtype, torch.float32)
        strength = torch.broadcast_to(strength.to(work), step.shape).unsqueeze(-1)
        change = out.to(work) - hidden.to(work)
        # One formula from either end, so that strengths of 0 and 1 are h and op(h) bit for bit and the gradient
        # with respect to the strength is right at both.
        scaled = torch.where(strength < 0.5, shift(hidden, strength * change), shift(out, (strength - 1) * change))
        return torch.where((index >= 0).unsqueeze(-1), scaled, hidden)


@struct
class Scheduled(Operator):
    """See `scheduled`."""

    operator: Operator
    strengths: tuple[Tensor, ...]  # at most one; None would be a leaf that transforms refuse
    function: Callable[[Tensor], Tensor] | None = static()

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        inner = self.operator.bind_at(site, device)
        return None if inner is None else _Scheduled(inner=inner, strengths=self.strengths, function=self.function)

    def touched(self, tokens: Tokens) -> TokenMask:
        return (tokens.generated_index >= 0) & self.operator.touched(tokens)


@public
def scheduled(op: Operator, schedule: Sequence[float] | Tensor | Callable[[Tensor], Tensor]) -> Operator:
    """Strength as a function of the generated-token index: `h' = h + s(t) (op(h) - h)`.

    `t` is the index of the generated token that a position predicts: 0 at the last prompt token. Earlier
    prompt tokens are left as they are; steer them with `chain(at(prompt & ~generated, op), scheduled(op, s))`.

    Args:
        op: any operator; for `add` a strength of `s` is an alpha of `s * alpha`.
        schedule: numbers by token index, the last one going on for ever (`constant`, `linear_decay`, `first_tokens` and
            `warm_up` make such lists); or a function from an integer tensor `[batch, seq]` of token indices to
            strengths of the same shape.

    Raises:
        SteerError: `op` is not an operator, or the schedule is empty, not finite, or neither of the two.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)}), torch.zeros(1, 4, 1)
        >>> sf.scheduled(sf.add(v), [1.0, 0.5, 0.0])(h, sf.Info.of(h, prompt_length=2)).flatten()
        tensor([0.0000, 1.0000, 0.5000, 0.0000])
        >>> fading = sf.scheduled(sf.add(v), lambda t: 0.9**t)
    """
    op = as_operator(op)
    if callable(schedule) and not isinstance(schedule, Tensor):
        return Scheduled(op, (), schedule)
    try:
        strengths = torch.as_tensor(schedule, dtype=None if isinstance(schedule, Tensor) else torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise SteerError(
            f"A schedule is a list of numbers or a function of token indices, not {schedule!r:.80}."
        ) from None
    if strengths.ndim != 1 or not len(strengths) or strengths.is_complex() or not is_finite(strengths, MOST):
        raise SteerError(f"A schedule is a non-empty list of finite numbers, not {schedule!r:.80}.")
    return Scheduled(op, (strengths.clone(),), None)  # what happens to the caller's tensor later does not reach it


@public
def constant(strength: float = 1.0) -> list[float]:
    """The schedule `s(t) = strength` for every generated token.

    Args:
        strength: a factor on the operator's effect.

    Raises:
        SteerError: a strength that is not a finite number.

    Example:
        >>> import steerfn as sf
        >>> sf.schedules.constant(0.5)
        [0.5]
    """
    return [_strength("strength", strength)]


@public
def linear_decay(tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
    """The schedule that goes in a straight line: `s(t) = start + (end - start) min(t / tokens, 1)`.

    Args:
        tokens: at which token index (0: the first generated token) `end` is reached.
        start: strength of the first generated token.
        end: strength from `tokens` on.

    Raises:
        DataError: `tokens` is not a positive integer, or a strength not a finite number.

    Example:
        >>> import steerfn as sf
        >>> sf.schedules.linear_decay(4)
        [1.0, 0.75, 0.5, 0.25, 0.0]
        >>> op = sf.scheduled(sf.add(v, 4.0), sf.schedules.linear_decay(20))
    """
    first, last, n = _strength("start", start), _strength("end", end), positive_int("tokens", tokens)
    return [first + (last - first) * (t / n) for t in range(n)] + [last]


@public
def first_tokens(tokens: int, strength: float = 1.0) -> list[float]:
    """The schedule that holds for the first tokens only: `s(t) = strength` where `t < tokens`, and 0 from there on.

    Args:
        tokens: how many generated tokens.
        strength: theirs.

    Raises:
        DataError: `tokens` is not a positive integer, or a strength not a finite number.

    Example:
        >>> import steerfn as sf
        >>> sf.schedules.first_tokens(3)
        [1.0, 1.0, 1.0, 0.0]
    """
    return [_strength("strength", strength)] * positive_int("tokens", tokens) + [0.0]


@public
def warm_up(tokens: int, strength: float = 1.0) -> list[float]:
    """The schedule that rises from 0 in a straight line: `s(t) = strength min(t / tokens, 1)`.

    Args:
        tokens: at which token index (0: the first generated token) `strength` is reached.
        strength: from there on.

    Raises:
        DataError: `tokens` is not a positive integer, or a strength not a finite number.

    Example:
        >>> import steerfn as sf
        >>> sf.schedules.warm_up(4)
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return linear_decay(tokens, 0.0, _strength("strength", strength))


def _strength(name: str, value: Any) -> float:
    return float(finite_number(name, value, hint="it is a share of the operator's effect"))
