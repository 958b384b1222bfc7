"""Where text is printed: how wide it is, whether someone looks on, and how much room characters take there."""

import dataclasses
import os
import shutil
import sys
import unicodedata
from typing import Any

LEAST = 60
"""Columns at least: below that texts become ribbons."""


@dataclasses.dataclass(frozen=True)
class Screen:
    """The screen, file or pipe that the text of a result is laid out for.

    Attributes:
        width: columns.
        wraps: keep every line within them. In a file or a pipe a row of a table stays one line, whatever its width, so
            that programs can search it.
        colour: mark differences by colours instead of signs.
        max_rows: texts to show side by side; None shows all.
    """

    width: int
    wraps: bool
    colour: bool = False
    max_rows: int | None = None

    @classmethod
    def of_stdout(cls, max_rows: int | None = None) -> "Screen":
        """That which stdout is, without colours."""
        return cls(terminal_width(), _is_terminal(), False, max_rows)


def terminal_width() -> int:
    """Columns of the terminal."""
    return max(LEAST, shutil.get_terminal_size().columns)


def in_colour() -> bool:
    """Whether what is printed is seen in a terminal by someone who has not asked for no colours (no-color.org)."""
    return _is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def columns(text: str) -> int:
    """How many columns a terminal needs for a text: two for a wide character, none for one that combines."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def printable(text: str) -> str:
    """The text with "?" for what the encoding of stdout lacks: an old console is no reason to show nothing."""
    encoding: Any = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
