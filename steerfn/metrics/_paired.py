"""What comes with the texts has one entry for each of them."""

from collections.abc import Sequence
from typing import Any

from steerfn._errors import DataError


def check_paired(texts: Sequence[str], **given: Sequence[Any]) -> None:
    """Refuses prompts or references of another number than the texts'.

    Raises:
        DataError: it names both numbers.
    """
    for name, values in given.items():
        if len(values) != len(texts):
            raise DataError(f"There are {len(texts)} texts and {len(values)} {name}; pass one for each text.")
