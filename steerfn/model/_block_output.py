"""The hidden state among what a module returns: a bare tensor, or one part of a tuple, mapping or dataclass."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from steerfn.values import ModelError

NAMES = ("hidden_states", "last_hidden_state", "hidden_state")


def hidden_of(out: Any) -> Any:
    """The hidden state among a module's outputs: a bare tensor, the first of several, or the part of that name.

    Raises:
        ModelError: it holds none.
    """
    if isinstance(out, Tensor):
        return out
    if isinstance(out, (tuple, list)):
        hidden = out[0] if out else None
    else:
        parts = _parts(out)
        hidden = parts.get(_key(parts))
    if not isinstance(hidden, Tensor):
        raise ModelError(
            f"A module of the model returned a {type(out).__name__} in which no hidden state is known; one that is "
            "steered or read returns a tensor, or a tuple, mapping or dataclass that holds one as its first part or "
            f"as {', '.join(NAMES)}."
        )
    return hidden


def with_hidden(out: Any, hidden: Any) -> Any:
    """The same outputs with another hidden state."""
    if isinstance(out, Tensor):
        return hidden
    if hidden_of(out) is hidden:
        return out
    if isinstance(out, (tuple, list)):
        parts = (hidden, *out[1:])
        if hasattr(type(out), "_make"):  # a named tuple
            return type(out)._make(parts)  # pyright: ignore[reportAttributeAccessIssue]
        return type(out)(parts) if type(out) in (tuple, list) else parts
    made, key = copy.copy(out), _key(_parts(out))
    if isinstance(out, Mapping):
        made[key] = hidden
    else:  # perhaps a frozen one
        object.__setattr__(made, key, hidden)
    return made


def _parts(out: Any) -> dict[str, Any]:
    """The parts of a mapping or a dataclass, by name; an empty dict for anything else."""
    if isinstance(out, Mapping):
        return dict(out)
    if dataclasses.is_dataclass(out):
        return {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}
    return {}


def _key(parts: dict[str, Any]) -> str:
    """The name of the hidden state: a usual one, else the first."""
    return next((name for name in NAMES if isinstance(parts.get(name), Tensor)), next(iter(parts), ""))
