"""Counts and lists in sentences."""

from collections.abc import Sequence


def counted(n: int, what: str) -> str:
    """ "1 prompt", "2 prompts"."""
    return f"{n} {what}{'s' * (n != 1)}"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
