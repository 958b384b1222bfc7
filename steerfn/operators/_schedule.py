"""Schedules: a strength that depends on which generated token a position predicts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn._errors import ShapeError, SteerError
from steerfn._site import Site
from steerfn._struct import static, struct
from steerfn._types import Hidden
from steerfn.operators._base import Bound, Operator, as_operator, shifted
from steerfn.operators._info import Info


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
            strength = strengths[step.clamp_max(strengths.shape[0] - 1)]
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
        scaled = torch.where(strength < 0.5, shifted(hidden, strength * change), shifted(out, (strength - 1) * change))
        return torch.where((index >= 0).unsqueeze(-1), scaled, hidden)


@struct
class Scheduled(Operator):
    """See `scheduled`."""

    operator: Operator
    strengths: tuple[Tensor, ...]  # at most one; None would be a leaf that transforms refuse
    function: Callable[[Tensor], Tensor] | None = static()

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        inner = self.operator.bind(site, device)
        return None if inner is None else _Scheduled(inner=inner, strengths=self.strengths, function=self.function)


def scheduled(op: Operator, schedule: Sequence[float] | Tensor | Callable[[Tensor], Tensor]) -> Operator:
    """Strength as a function of the generated-token index: `h' = h + s(t) (op(h) - h)`.

    `t` is the index of the generated token that a position predicts: 0 at the last prompt token. Earlier
    prompt tokens are left as they are; steer them with `chain(at(prompt & ~generated, op), scheduled(op, s))`.

    Args:
        op: any operator; for `add` a strength of `s` is an alpha of `s * alpha`.
        schedule: numbers by token index, the last one going on for ever; or a function from an integer
            tensor `[batch, seq]` of token indices to strengths of the same shape.

    Raises:
        SteerError: `op` is no operator, or the schedule is empty, not finite, or neither of the two.

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
    if strengths.ndim != 1 or not len(strengths) or not bool(torch.isfinite(strengths).all()):
        raise SteerError(f"A schedule is a non-empty list of finite numbers, not {schedule!r:.80}.")
    return Scheduled(op, (strengths,), None)
