"""Pitfall 26, in one place: what it means that an option does something, and which options a verb has."""

import inspect

import torch

from steerfn.discover.engine._discover import Options


def assert_changes(without, with_):
    """Two calls, without and with an option, that give something else."""
    first, second = without(), with_()
    tensors = torch.is_tensor(first) and torch.is_tensor(second)
    assert not (torch.equal(first, second) if tensors else str(first) == str(second))


def optional(function):
    """The names of a function's optional arguments, those of discovery spelled out."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.default is not inspect.Parameter.empty}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) and function.__module__.startswith(
        "steerfn.discover"
    ):
        names |= set(Options.__annotations__)
        names -= {"sites"}
    return names - {"negative"}  # with the sites an argument: it may be left out where a contrast set stands for it
