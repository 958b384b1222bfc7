"""What results become outside of Python: JSON that every reader takes, and files that appear whole or not at all."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steerfn._errors import FileError
from steerfn._io_write import write_together


def finite(value: Any) -> Any:
    """A copy made of JSON values: None for what JSON has no number for, lists of arrays, dicts of dataclasses."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> str:
    """The JSON of a result: indented, and with null where a number is none."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def write_text(path: Any, text: str, what: str) -> Path:
    """Write a text file, whole or not at all.

    Args:
        path: the file.
        text: what goes into it, as UTF-8.
        what: what it is, as errors call it: "The table".

    Returns:
        The path.

    Raises:
        FileError: the file system refuses.
    """
    place = Path(path)
    try:
        # A model's tokens may be cut within a character, and a prompt may hold half of a pair: the rest is readable.
        write_together({place: text.encode("utf-8", "replace")})
    except OSError as error:
        raise FileError(f"{what} cannot be written to {path}: {error.strerror}; name another place.") from None
    return place
