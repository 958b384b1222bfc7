"""SHA-256 in hexadecimal: of values by their JSON, and of files."""

import hashlib
import json
import os
from typing import Any

BLOCK = 1 << 22
"""Bytes of a file that are read at once."""


def json_sha256(value: Any) -> str:
    """The SHA-256 of the JSON of a value with its keys sorted; arrays, tensors and columns count as lists.

    Example:
        >>> json_sha256({"a": 1, "b": (2, 3)}) == json_sha256({"b": [2, 3], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
