"""One forward pass under one more entry: to capture, to read, to check a layout, and to steer a private copy.

A pass that only looks has an operator that shows each state to a function (`Look`), and may end as soon as everything
is known (`StopForward`).
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steerfn.model._blocks import Layout
from steerfn.model._entry import Entry, Observation, active, entries_of
from steerfn.model._spine import Spine
from steerfn.model._substitute import device_of, plan_of, substitutions_of
from steerfn.operators import Info, Operator
from steerfn.values import Site, static, struct


class StopForward(BaseException):
    """Raised inside a forward pass to end it."""


@struct
class _Looking:
    see: Any

    def __call__(self, hidden: Tensor, info: Info) -> Tensor:
        self.see(info.site, hidden)
        return hidden


@struct
class Look(Operator):
    """Leaves every state as it is, and shows it to a function.

    Attributes:
        at_sites: where it looks.
        see: called with each site and the state there, `[batch, seq, width]`; may raise `StopForward`.
    """

    at_sites: tuple[Site, ...] = static()
    see: Callable[[Site, Tensor], Any] = static()

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.at_sites

    def bind(self, site: Site, device: Any = None) -> Any:
        del site, device
        return _Looking(see=self.see)


def observation(root: nn.Module, at: Layout, op: Operator, prompt_length: Any = None, **more: Any) -> Observation:
    """An observation by an operator with resolved sites, of a model's own blocks; see `Observation`."""
    host = substitutions_of(root, at).host
    return Observation(host, op, functools.partial(device_of, root, at), prompt_length, **more)


def observe(call: Callable[[], Any], entry: Entry, place: contextlib.AbstractContextManager[Any] | None = None) -> Any:
    """Run a call while one more entry acts for the calling thread; None where `StopForward` has ended it.

    Args:
        call: runs a forward pass.
        entry: what acts, beside the steerings that are open.
        place: puts the entry's forwards into the model for the time of the call, as `Substitutions.place`; None where
            the pass is that of a private copy, which has them.
    """
    with place or contextlib.nullcontext():
        token = active.set((*active.get(), entry))
        try:
            return call()
        except StopForward:
            return None
        finally:
            active.reset(token)


def infer(model: Any, root: nn.Module, at: Layout, entry: Entry, given: dict[str, Any]) -> Any:
    """The output of a forward pass in evaluation mode, without gradients; None where `StopForward` has ended it.

    `model` is called with `given`, and without a cache unless that has one. In training mode the `root` in it runs as
    a private copy, without dropout.
    """
    if any(module.training for module in root.modules()):
        model, place = _evaluating(root, at, entry), None
    else:
        place = substitutions_of(root, at).place(root, at, entry)
    with torch.no_grad():
        return observe(functools.partial(model, **{"use_cache": False, **given}), entry, place)


def _evaluating(root: nn.Module, at: Layout, entry: Entry) -> nn.Module:
    """A copy of a model in evaluation mode, for an entry and for the steerings that are open."""
    copy = Spine(root, at, plan_of(at, *entries_of(entry.host), entry), whole=True, host=entry.host)
    copy.evaluate()
    return copy.root
