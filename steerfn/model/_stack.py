"""The call stack where context variables do not suffice: under which calls of others the running code stands."""

import inspect
import sys
from types import FrameType
from typing import Any

GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def callers() -> list[FrameType]:
    """The frames of the calling thread, innermost first."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def generators() -> tuple[FrameType, ...]:
    """The frames of the generators that run now; each stays the same object from one `next` to another."""
    return tuple(frame for frame in callers() if frame.f_code.co_flags & GENERATORS)


def generating() -> Any:
    """The model whose `generate` (transformers' own) the running code stands under, or None."""
    for frame in callers():
        if frame.f_code.co_name == "generate" and frame.f_globals.get("__name__") == "transformers.generation.utils":
            return frame.f_locals.get("self")
    return None
