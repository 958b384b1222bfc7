"""The n-grams of a text: every run of n of its words."""

from typing import Any

from steerfn._errors import DataError


def ngrams(text: str, n: Any) -> list[tuple[str, ...]]:
    """Every run of `n` words, words being what white space separates.

    Raises:
        DataError: `n` is no number from 1.

    Example:
        >>> ngrams("to be or not", 2)
        [('to', 'be'), ('be', 'or'), ('or', 'not')]
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise DataError(f"n is a number of words from 1, not {n!r}.")
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
