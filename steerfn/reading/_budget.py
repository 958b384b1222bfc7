"""How much goes into one batch."""

from typing import Any

from steerfn._errors import DataError
from steerfn._numbers import plain_number

TOKENS = {"cpu": 1024}
"""Tokens, padding included, that `batch_size="auto"` puts into one batch, by device: what fills the cores and still
fits their caches; other devices are wider."""
TOKENS_ELSEWHERE = 16384


def limit_of(batch_size: Any, what: str = "texts") -> int | None:
    """The most that a batch may hold; None for "auto".

    Raises:
        DataError: neither "auto" nor a number from 1.
    """
    if batch_size == "auto":
        return None
    batch_size = plain_number(batch_size)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"batch_size is 'auto' or a number of {what} from 1, not {batch_size!r}.")
    return batch_size
