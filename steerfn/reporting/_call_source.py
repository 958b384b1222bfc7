"""A call as the code that repeats it: what was passed, and of the options those that differ from their defaults."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steerfn.values.files import is_hub

HOW = ("progress", "batch_size", "call", "title")
"""Options that change how long it takes and how it looks, not what comes out."""
LONGEST = 120
"""Characters of one argument."""


def call_source(function: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """The call, with the options that differ from their defaults.

    Args:
        options: its arguments by name, those of `**` too, as `locals()` has them.
    """
    arguments = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = options[name]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments += [f"{key}={_argument_source(key, each)}" for key, each in value.items()]
        elif parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            arguments.append(_argument_source(name, value))
        elif name not in HOW and not _is_default(value, parameter.default):
            arguments.append(f"{name}={_argument_source(name, value)}")
    lines = "".join(f"    {each},\n" for each in arguments)
    return f"sf.{function.__name__}(\n{lines})"


def _is_default(value: Any, default: Any) -> bool:
    try:
        return value is default or bool(value == default)
    except (ValueError, RuntimeError):  # arrays and tensors do not say yes or no
        return False


def _argument_source(name: str, value: Any) -> str:
    """An argument as code, or its name where the code would be long."""
    if isinstance(value, os.PathLike):
        value = Path(value).name
    if isinstance(value, str) and name in ("vector", "data") and not is_hub(value):
        value = Path(value).name  # where it lies on this machine is nobody's business
    plain = value is None or isinstance(value, (bool, int, float, str))
    listed = isinstance(value, (list, tuple)) and all(isinstance(each, (bool, int, float, str)) for each in value)
    if (plain or listed) and len(repr(value)) <= LONGEST:
        return repr(value)
    return name
