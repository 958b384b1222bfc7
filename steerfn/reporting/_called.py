"""How a function was called, as text: enough for a reader to do it again."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HOW = ("progress", "batch_size", "call", "title")
"""Options that change how long it takes and how it looks, not what comes out."""
LONGEST = 120
"""Characters of one argument."""


def called(function: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """The call, with the options that differ from their defaults.

    Args:
        function: what was called.
        options: its arguments by name, those of `**` too, as `locals()` has them.
    """
    said = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = options[name]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            said += [f"{key}={_shown(key, each)}" for key, each in value.items()]
        elif parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            said.append(_shown(name, value))
        elif name not in HOW and not _same(value, parameter.default):
            said.append(f"{name}={_shown(name, value)}")
    lines = "".join(f"    {each},\n" for each in said)
    return f"sf.{function.__name__}(\n{lines})"


def _same(value: Any, default: Any) -> bool:
    try:
        return value is default or bool(value == default)
    except (ValueError, RuntimeError):  # arrays and tensors do not say yes or no
        return False


def _shown(name: str, value: Any) -> str:
    """An argument as code; what has no short code goes by its name."""
    if isinstance(value, os.PathLike):
        value = Path(value).name
    if isinstance(value, str) and name in ("v", "data"):
        value = Path(value).name  # where it lies on this machine is nobody's business
    plain = value is None or isinstance(value, (bool, int, float, str))
    listed = isinstance(value, (list, tuple)) and all(isinstance(each, (bool, int, float, str)) for each in value)
    if (plain or listed) and len(repr(value)) <= LONGEST:
        return repr(value)
    return name
