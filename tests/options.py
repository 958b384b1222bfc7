"""Pitfall 26, in one place: what it means that an option does something, and which options a verb has."""

import contextlib
import inspect
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from families import build

from steerfn.discover._engine._discover import DiscoveryOptions


def assert_changes(without, with_):
    """Two calls, without and with an option, that give something else."""
    first, second = without(), with_()
    tensors = torch.is_tensor(first) and torch.is_tensor(second)
    assert not (torch.equal(first, second) if tensors else str(first) == str(second))


def optional(function):
    """The names of a function's optional arguments."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.default is not inspect.Parameter.empty}
    if set(DiscoveryOptions.__annotations__) <= names:
        names -= {"sites"}
    return names - {"negative"}  # with the sites an argument: it may be left out where a contrast set stands for it


def count_passes(call):
    """How many forward passes a call of a model takes."""
    model, seen = build("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    call(model)
    return len(seen)


def files_left(call, checkpoint, before=None):
    """The files that a call of a model leaves when its second forward pass is interrupted.

    Args:
        call: takes the model and a path or None, `checkpoint`.
        checkpoint: whether it is given a path.
        before: a call that comes before, such as one that asks what the model supports.
    """
    model, seen = build("llama"), []
    if before is not None:
        before(model)

    def interrupt(*_):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    model.model.embed_tokens.register_forward_hook(interrupt)
    with TemporaryDirectory() as folder:
        with contextlib.suppress(KeyboardInterrupt):
            call(model, checkpoint=Path(folder, "run") if checkpoint else None)
        return [path.name for path in Path(folder).iterdir()]
