"""Parse the rows of a data file, each with its place in the file; `_rows` interprets them."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from steerfn.values import missing
from steerfn.values.files import Refused, brief, read_bytes

MAX_BYTES = 128 * 2**20
"""Largest file read: a hundred times the published sets of a thousand questions."""
MAX_THINGS = 3_000_000
"""Most lines, commas and brackets: what a file of that size has in prose."""


JSON, JSON_LINES, PLAIN = (".json", ".jsonl", ".ndjson"), (".jsonl", ".ndjson"), (".txt", ".csv", ".tsv")
TABLES = {".csv": ",", ".tsv": "\t"}
"""Suffixes that promise a table with a header, and what separates its columns."""


class DataRow(NamedTuple):
    """An entry and where it is, as an error will call it: "line 3", "entry [2]"."""

    where: str
    value: Any


def content(path: Path) -> dict[str, Any] | list[DataRow]:
    """The JSON object in a file, or its rows: of a JSON list, JSON lines, a table (as dicts), or plain lines.

    Raises:
        Refused: a file that is missing, too large, binary, empty, or a broken JSON, CSV, TSV or parquet file.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    text = read_text(path)
    if text.lstrip()[0] in "[{" or suffix in JSON:
        try:
            return _json(text, suffix)
        except Refused:
            if suffix not in PLAIN:  # there a line may well begin with a bracket
                raise
    table = _table(text, TABLES.get(suffix), "\t" if "\t" in text.partition("\n")[0] else ",")
    return [DataRow(f"line {n}", line.strip()) for n, line in _lines(text)] if table is None else table


def _data(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_BYTES, "pass a JSON, JSONL, CSV, TSV, parquet or text file")
    except FileNotFoundError:
        raise Refused("there is no such file", "check the name and its folder") from None
    except (OSError, ValueError) as error:
        raise Refused(getattr(error, "strerror", None) or str(error), "check its name and permissions") from None


def read_text(path: Path) -> str:
    """The text of a file, once it is one and no list of more things than memory is meant for.

    Raises:
        Refused: a file that is missing, too large, binary or empty.
    """
    data = _data(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(
            f"it is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start})",
            "unpack it if it is an archive, or save it as JSON, JSONL or CSV in UTF-8",
        ) from None
    if "\0" in text:
        raise Refused("it is binary (it holds NUL bytes)", "save it as JSON, JSONL or CSV in UTF-8")
    if not text.strip():
        raise Refused("it is empty", "write at least one example of each side")
    # Counted before anything is parsed: an empty list is two bytes in a file and a hundred in memory.
    if (things := sum(map(text.count, "[{,\n"))) > MAX_THINGS:
        raise Refused(f"it has {things} lines, commas and brackets, more than {MAX_THINGS}", "divide it, or sample it")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines, which also divides at separators that JSON allows inside a string.
    return ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())


def _json(text: str, suffix: str) -> dict[str, Any] | list[DataRow]:
    """The whole text as one JSON value; where it is several, one a line."""
    lines = list(_lines(text))
    if suffix in JSON_LINES and len(lines) == 1:
        return _json_lines(lines)
    try:
        parsed = _parse(text, "its text")
    except Refused as whole:
        try:
            _parse(lines[0][1], "line 1")
        except Refused:
            raise whole from None
        if len(lines) == 1:
            raise
        return _json_lines(lines)
    if isinstance(parsed, dict):
        return parsed
    if isinstance(parsed, list):
        return [DataRow(f"entry [{i}]", value) for i, value in enumerate(parsed)]
    raise Refused(f"it holds the JSON value {brief(parsed)}", "write a list of pairs")


def _json_lines(lines: list[tuple[int, str]]) -> list[DataRow]:
    return [DataRow(f"line {n}", _parse(line, f"line {n}")) for n, line in lines]


def _parse(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise Refused(f"the JSON of {what} is nested too deeply", "write a list of pairs") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if what == "its text" else f"column {error.colno}"
        raise Refused(f"{what} is not valid JSON ({error.msg} at {where})", "correct it there") from None
    except ValueError as error:  # an integer of thousands of digits
        raise Refused(f"{what} is not valid JSON ({error})", "correct it") from None


COLUMNS = set("positive negative pos neg chosen rejected statement text label question prompt".split())
"""A first line of words, separated by commas or tabs, with two of these is the header of a table."""


def _table(text: str, must: str | None, separator: str) -> list[DataRow] | None:
    """The rows of a table with a header; without one that we know None, unless it must be a table."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=must or separator)
    try:
        header = [column.strip().casefold() for column in next(reader)]
        known = must is not None or len(COLUMNS & set(header)) >= 2
        if not known:
            return None
        if len(set(header)) < len(header) or (len(header) < 2 and header[0] not in COLUMNS):
            raise Refused(
                f"its columns are {brief(', '.join(header))}",
                "a table has columns such as positive,negative or text,label, each once, separated by commas (.csv) or "
                "tabs (.tsv)",
            )
        rows, start = [], reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise Refused(
                    f"line {start} has {len(cells)} columns and its header {len(header)}",
                    "put texts that contain a comma in double quotes",
                )
            if cells:
                rows.append(DataRow(f"line {start}", dict(zip(header, cells, strict=True))))
            start = reader.line_num + 1
        return rows
    except csv.Error as error:
        if not must and reader.line_num < 2:
            return None
        raise Refused(f"line {reader.line_num} is not valid CSV ({error})", "correct the quotes there") from None


def _parquet(path: Path) -> list[DataRow]:
    """The rows of a parquet file, as far as `MAX_BYTES` of them in memory."""
    data = _data(path)
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Refused(missing("pyarrow", "parquet", error), "or save the table as JSONL or CSV") from None
    rows: list[DataRow] = []
    size = 0
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        groups = range(file.metadata.num_row_groups)
        unpacked = sum(file.metadata.row_group(group).total_byte_size for group in groups)
        if unpacked > MAX_BYTES:
            raise Refused(
                f"its columns have {unpacked} bytes unpacked, more than {MAX_BYTES}", "divide it, or sample it"
            )
        # A text may be written once and meant by every row, so as many rows are made at once as there is room for.
        for batch in file.iter_batches(batch_size=max(1, min(256, MAX_BYTES // max(1, unpacked)))):
            size += batch.nbytes
            if size > MAX_BYTES:
                raise Refused(f"its table has more than {MAX_BYTES} bytes in memory", "divide it, or sample it")
            for values in batch.to_pylist():
                rows.append(DataRow(f"row {len(rows)}", {str(k).casefold(): v for k, v in values.items()}))
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"it is not a valid parquet file ({brief(str(error))})", "write it again") from None
    return rows
