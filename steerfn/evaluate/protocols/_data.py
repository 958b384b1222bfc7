"""Items of a protocol, from a list or from a file in the format in which they were published."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steerfn.datasets import content, read_text
from steerfn.run import Text
from steerfn.values import DataError, FileError
from steerfn.values.files import Refused, brief

Items = str | os.PathLike[str] | Sequence[Any]
"""The items of a protocol, or the path of a file of them."""
PROMPT_KEYS = ("prompt", "instruction", "goal", "question", "turns", "text")
"""Where published files keep the prompt; the first that an entry has counts."""


class DataEntry(NamedTuple):
    """An item as it was given, and where, as errors call it."""

    where: str
    value: Any


def entries(data: Any, what: str) -> list[DataEntry]:
    """The entries of a list, of a contrast set's items, or of a file: JSON, JSON lines, CSV or one text a line.

    Args:
        data: a list, something with `items` that are a list, or a path.
        what: what errors call it.

    Raises:
        FileError: a file that cannot be read, is damaged, or holds no list.
        DataError: no list, or an empty one.
    """
    inner = getattr(data, "items", None)
    if isinstance(inner, (list, tuple)) and inner:
        data = inner
    if isinstance(data, (str, os.PathLike)):
        return _from_file(Path(data))
    if isinstance(data, Mapping) or not isinstance(data, Sequence):
        raise DataError(
            f"{what} must be a list of items or the path of a file, not {data!r:.80} of type {type(data).__name__}."
        )
    if not data:
        raise DataError(f"{what} is empty; pass at least one item.")
    return [DataEntry(f"{what}[{i}]", value) for i, value in enumerate(data)]


def _from_file(path: Path) -> list[DataEntry]:
    try:
        if path.suffix.lower() == ".csv":
            return [DataEntry(f"{path.name}, {where}", row) for where, row in _csv(path)]
        rows = content(path)
        if isinstance(rows, dict):
            raise Refused(
                f"it holds one JSON object with the keys {brief(', '.join(rows))}", "a list of items is needed"
            )
        if not rows:
            raise Refused("its list is empty", "write at least one item")
    except Refused as refused:
        raise FileError(f"Cannot read '{path}': {refused.what}; {refused.fix}.") from None
    return [DataEntry(f"{path.name}, {row.where}", row.value) for row in rows]


def _csv(path: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise Refused(str(error), "save it as a CSV table in UTF-8") from None
    header, *rows = [row for row in rows if row] or [[]]
    if not rows:
        raise Refused("it has no row below its header", "write at least one item")
    for n, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise Refused(
                f"row {n} has {len(row)} columns and its header {len(header)}",
                "put texts that contain a comma in double quotes",
            )
    return [(f"row {n}", dict(zip(header, row, strict=True))) for n, row in enumerate(rows, 1)]


def texts_of(data: Any, what: str) -> list[Text]:
    """Prompts or plain texts, from a list or file of texts, conversations, or objects that hold one.

    An object's text is that of the first of `prompt`, `instruction`, `goal`, `question`, `turns` (the first one) and
    `text` that it has; that of a nested `{"text": ...}` counts, and a Self-Instruct `input` comes after its
    instruction. In a text file every line is one, in which `\\n` is a new line, as in ToxiGen's prompts.

    Raises:
        FileError: a file that cannot be read.
        DataError: an entry without text.
    """
    if _is_conversation(data):
        data = [data]
    is_lines = isinstance(data, (str, os.PathLike)) and Path(data).suffix.lower() == ".txt"
    texts = [_text_of(entry) for entry in entries(data, what)]
    return [text.replace("\\n", "\n") if is_lines and isinstance(text, str) else text for text in texts]


def _text_of(entry: DataEntry) -> Text:
    value: Any = entry.value
    if isinstance(value, Mapping):
        key = next((key for key in PROMPT_KEYS if key in value), None)
        if key is None:
            raise DataError(
                f"{entry.where} has none of the keys {', '.join(PROMPT_KEYS)}, but "
                f"{brief(', '.join(map(str, value)))}; pass texts, or objects with one of these."
            )
        value, item = value[key], value
        if key == "turns" and isinstance(value, Sequence) and value and not isinstance(value, str):
            value = value[0]
        if isinstance(value, Mapping):  # RealToxicityPrompts: {"prompt": {"text": ..., "toxicity": ...}}
            value = value.get("text")
        if isinstance(value, str) and key == "instruction":
            value = "\n\n".join(filter(None, [value, _input(item)]))
    if not _is_conversation(value) and (not isinstance(value, str) or not value.strip()):
        raise DataError(f"{entry.where} has no text but {brief(value)}; give it words, or remove it.")
    return value


def _input(item: Mapping[str, Any]) -> str:
    """The input of a Self-Instruct task."""
    instances = item.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else item
    text = first.get("input") if isinstance(first, Mapping) else None
    return text.strip() if isinstance(text, str) else ""


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in value)
    )


def sides_of(data: Any, names: Sequence[str], what: str = "data") -> dict[str, list[Text]]:
    """The prompts of every side of a mapping of names to lists or files.

    Raises:
        FileError: a file that cannot be read.
        DataError: no mapping, other names, or an entry without text.
    """
    if not isinstance(data, Mapping) or set(data) != set(names):
        received = f"the keys {', '.join(map(str, data))}" if isinstance(data, Mapping) else f"{data!r:.80}"
        shape = ", ".join(f'"{name}": prompts or a path' for name in names)
        raise DataError(f"{what} must be a mapping {{{shape}}}, not {received}.")
    return {name: texts_of(data[name], f"{what}[{name!r}]") for name in names}
