"""Text that others chose, made fit for a terminal: it may hold what moves a cursor or forges a line."""

import re

# Controls of both sets, what divides lines for some, overrides of the writing direction, which reorder what is around
# them, and halves of surrogate pairs, which can be encoded nowhere.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINES = re.compile("[\t\n]")


def visible(text: str) -> str:
    """A text whose control characters are written out, of one or several lines.

    Example:
        >>> from steerfn.values._visible import visible
        >>> print(visible("red: \\x1b[31m"))
        red: \\x1b[31m
    """
    return _HIDDEN.sub(_escape, text)


def visible_line(text: str) -> str:
    """The same on one line: line breaks and tabs are written out too."""
    return _LINES.sub(_escape, visible(text))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
