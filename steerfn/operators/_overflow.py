"""Watches for steering that turns a hidden state infinite, as a half-precision stream easily does."""

import torch
from torch import Tensor

from steerfn.values import has_values, warn


class Overflow:
    """Watches for finite states that one steering makes infinite or NaN; warns once.

    On the CPU every state is looked at and the warning comes at once. On an accelerator only float16 is, the one
    dtype that finite strengths overflow, and without waiting for it: the warning comes when the steering closes.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Tensor] = {}
        self._warned = False

    def note(self, name: str, hidden: Tensor, out: Tensor) -> None:
        """Look at what the operators at a site made of a hidden state."""
        if self._warned or not has_values(out) or not has_values(hidden):
            return
        if out.device.type != "cpu":
            if out.dtype == torch.float16:
                seen, lost = self._pending.get(name), _lost(hidden, out)
                self._pending[name] = lost if seen is None else seen | lost
        elif not torch.isfinite(out.sum(dtype=torch.float32)) and bool(_lost(hidden, out)):
            self._warn(name, out.dtype)

    def close(self) -> None:
        """Warn of what an accelerator has reported by now."""
        first_lost = next((name for name, lost in self._pending.items() if bool(lost)), None)
        if first_lost is not None and not self._warned:
            self._warn(first_lost, torch.float16)
        self._pending = {}

    def _warn(self, name: str, dtype: torch.dtype) -> None:
        self._warned = True
        warn(
            f"Steering made the hidden state at {name} infinite or not a number, so the model's output is "
            f"meaningless: {dtype} holds numbers up to {torch.finfo(dtype).max:.5g}. Use a smaller strength, or load "
            "the model in bfloat16 or float32."
        )


def _lost(hidden: Tensor, out: Tensor) -> Tensor:
    """Whether a token is infinite or not a number that was finite before, 0-d."""
    before, after = (torch.linalg.vector_norm(state, torch.inf, dim=-1) < torch.inf for state in (hidden, out))
    return (before & ~after).any()
