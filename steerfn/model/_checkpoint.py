"""Gradient checkpointing: what runs again in backward runs in the forward pass that it belongs to.

A checkpointed block runs a second time when backward reaches it: after its pass, perhaps after its context, on an
accelerator in another thread. Context variables say nothing true there, so the pass travels with the function that
the block hands to its checkpoint.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from steerfn.model import _frame
from steerfn.model._backward import backward_task, checkpoints
from steerfn.model._entry import Entry, Host, entries_of
from steerfn.model._frame import Frame
from steerfn.values import SteerError

CHECKPOINT = "_gradient_checkpointing_func"
"""The attribute under which transformers' modules hold the function that checkpoints their forward."""


class Checkpoint:
    """Stands in place of that function, which `own` gives, in the modules that share a host."""

    def __init__(self, host: Host, own: Callable[[], Callable[..., Any]]) -> None:
        self.host, self.own = host, own

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint a function that, whenever it runs, runs in the forward pass of now."""
        checkpoint = self.own()
        if torch.compiler.is_compiling():  # in a graph, what is computed again is a copy of what was traced
            return checkpoint(function, *args, **kwargs)
        frame = _frame.frame.get()
        if frame is None or frame.host is not self.host:  # a block called on its own, or an unsteered pass
            frame = Frame.of(self.host, entries_of(self.host))
        return checkpoint(within(frame, function, args), *args, **kwargs)


def within(frame: Frame, function: Callable[..., Any], given: tuple[Any, ...]) -> Callable[..., Any]:
    """A function that runs in a frame even after the frame was closed; `given` is what it is first called with."""
    reads = dict(frame.reads)
    # The block's input comes as an argument, which checkpoints hand back as they should; another tensor is held here.
    comes = bool(given) and given[0] is frame.block_input
    before = None if comes else frame.block_input

    def run(*args: Any, **kwargs: Any) -> Any:
        if _frame.frame.get() is frame:
            known, frame.checkpoints = frame.checkpoints, None  # this one is the model's own
            try:
                return function(*args, **kwargs)
            finally:
                frame.checkpoints = known
        again = frame.again(reads, args[0] if comes else before)
        token = _frame.frame.set(again)
        try:
            with contextlib.ExitStack() as stack:  # perhaps after the context closed
                for entry in frame.entries:
                    if entry.placed is not None:
                        stack.enter_context(entry.placed())
                return function(*args, **kwargs)
        finally:
            _frame.frame.reset(token)
            again.close()

    return run


def check_pass(entries: tuple[Entry, ...]) -> None:
    """Refuse a pass that runs inside backward or a checkpoint in which its steerings were not opened.

    What runs there again finds other contexts open than the first run did, or none.

    Raises:
        SteerError: there is such a steering, or we are inside backward and nothing is open.
    """
    task = backward_task()
    if task == -1 and not entries:
        return
    depth = checkpoints()
    if not entries or any(entry.opened_in[0] != task or entry.opened_in[1] < depth for entry in entries):
        raise SteerError(UNKNOWN)


def check_block(frame: Frame) -> None:
    """Refuse a block whose pass does not know of the checkpoint around it.

    Raises:
        SteerError: there is one.
    """
    if frame.checkpoints is not None and checkpoints() > frame.checkpoints:
        raise SteerError(UNKNOWN)


UNKNOWN = (
    "A steered model is checkpointed by other means than its own, so what runs again in backward would not be steered "
    "as the first run was. Switch the model's own gradient checkpointing on before the context opens, or checkpoint a "
    "function that opens the context itself (or calls sf.functional)."
)
