"""Warnings at the line of the user's code that they are about, however deep below it they arise."""

import sys
import warnings
from types import FrameType

from steerfn.values._errors import SteerWarning

INSIDE = ("steerfn", "contextlib")
"""Whose frames are not the user's: ours, and what stands between two of ours."""


def caller() -> tuple[FrameType, int]:
    """The frame outside of this package that led here, and how far above the function that asks it is."""
    frame, above = sys._getframe(1), 0
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        frame, above = frame.f_back, above + 1
    return frame, above


def warn(message: str) -> None:
    """Warn, at the line of the user's code that led here."""
    warnings.warn(message, SteerWarning, stacklevel=caller()[1] + 1)


class Unused:
    """Warns at the line of the user's code that made an object, if nobody has used it when it is dropped."""

    __slots__ = ("message", "file", "line", "module")

    def __init__(self, message: str) -> None:
        frame = caller()[0]
        self.message, self.module = message, frame.f_globals
        self.file, self.line = frame.f_code.co_filename, frame.f_lineno

    def warn(self) -> None:
        """To be called from `__del__` of the object."""
        if sys.is_finalizing():
            return
        registry = self.module.setdefault("__warningregistry__", {})
        warnings.warn_explicit(self.message, SteerWarning, self.file, self.line, self.module.get("__name__"), registry)
