"""Export of results: JSON and CSV that every reader takes, pandas, and files written whole or not at all."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steerfn.values import DataError, FileError
from steerfn.values.files import check_output, write_together


def finite(value: Any) -> Any:
    """A copy made of JSON values: None for what JSON has no number for, lists of arrays, dicts of dataclasses."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> str:
    """The JSON of a result: indented, and with null where a number is NaN or infinite."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV (RFC 4180, with line feeds): a column for every key that any of them has."""
    keys = dict.fromkeys(key for record in records for key in record)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([_csv_cell(record.get(key)) for key in keys] for record in records)
    return file.getvalue()


def _csv_cell(value: Any) -> Any:
    """A number in full, a list or a mapping as JSON; nothing for NaN, as for None."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(finite(value), allow_nan=False, ensure_ascii=False)
    return None if isinstance(value, float) and math.isnan(value) else value


def write_text(path: Any, text: str, what: str) -> Path:
    """Write a text as UTF-8, whole or not at all, and give its path; errors call it `what`, such as "The table".

    Raises:
        FileError: the file system refuses.
    """
    place = check_output(path, what)
    try:
        # A model's tokens may be cut within a character, and a prompt may hold half of a pair: the rest is readable.
        write_together({place: text.encode("utf-8", "replace")})
    except OSError as error:
        raise FileError(f"{what} cannot be written to '{path}': {error.strerror}; choose another place.") from None
    return place


def dataframe(records: Sequence[dict[str, Any]]) -> Any:
    """A DataFrame with one row for each record.

    Raises:
        DataError: pandas is not installed.
    """
    try:
        import pandas  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError("to_pandas needs pandas, which is not installed: pip install pandas.") from None
    return pandas.DataFrame(records)
