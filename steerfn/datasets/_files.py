"""Reading the files in which contrast sets are published, told apart by what is in them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from steerfn._errors import FileError
from steerfn._io_document import Refused, brief
from steerfn._text import Text
from steerfn.datasets._content import Row, content
from steerfn.datasets._set import ITEM_KEYS, ContrastSet

T = TypeVar("T")

FIX = "write a list of [positive, negative] pairs, or one of the formats in the documentation of sf.datasets.from_file"


def from_file(path: str | os.PathLike[str], negative: str | os.PathLike[str] | None = None) -> ContrastSet:
    """A contrast set from a file, in the format that its content shows.

    | format | content | gives |
    |---|---|---|
    | CAA, JSON list | `{"question", "answer_matching_behavior", "answer_not_matching_behavior"}` | pairs, items |
    | Anthropic evals, JSONL | the same keys and others, one object a line | pairs, items |
    | pairs, JSON list or JSONL | `[positive, negative]` or `{"positive", "negative"}` | pairs |
    | pairs, CSV | columns `positive,negative` | pairs |
    | labels (RepE facts), CSV | columns `statement,label`; label 1 is positive, 0 negative | no pairs |
    | two lists, JSON object | `{"positive": [...], "negative": [...]}` | no pairs |
    | two lists (CAST), JSON object | exactly two lists under other names; the first is positive | no pairs |
    | shipped set, JSON object | `{"pairs": [[positive, negative], ...]}` | pairs |
    | one side (RepE emotions) | JSON list of texts, or text with one example a line; needs `negative` | no pairs |

    A text is a string, or a conversation as a list of messages with role and content. Questions and answers become
    the texts `question.rstrip() + " " + answer.strip()`; the entries themselves, with all that the file says of
    them, become `items`. Lists that only happen to be equally long are not taken for pairs; where they are,
    `dataclasses.replace(d, paired=True)` says so. Files are UTF-8, with or without a byte order mark.

    Args:
        path: the file. It may come from anyone: nothing in it is executed, and 128 MiB are read at most,
            with 3 million lines, commas and brackets.
        negative: the file of the other side, where each file is a list of texts.

    Raises:
        FileError: a file that is missing, too large, binary, broken or of another format, an entry without its
            keys or without text, or a side without examples; it names the file, the place and the fix.

    Source: the formats of Rimsky et al. 2024 (CAA), Perez et al. 2022 (Anthropic evals), Zou et al. 2023 (RepE) and
    Lee et al. 2024 (CAST).

    Example:
        >>> import json, pathlib, tempfile, steerfn as sf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "mood.json")
        ...     _ = path.write_text(json.dumps([["What a lovely day.", "What an awful day."]]))
        ...     sf.datasets.from_file(path)
        ContrastSet('mood', 1 pair)
    """
    first = _path(path)
    if negative is None:
        return _told(first, _contrast)
    second = _path(negative)
    return ContrastSet(
        name=f"{first.stem} vs {second.stem}",
        positive=_told(first, _one_side),
        negative=_told(second, _one_side),
        source=f"{first.name}, {second.name}",
    )


def _path(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise FileError(
            f"A file of contrast pairs is named by text or a Path, not by {brief(path)} of type {type(path).__name__}."
        ) from None


def _told(path: Path, reading: Callable[[Path], T]) -> T:
    """What is read from a file; what is wrong with it, with its name."""
    try:
        return reading(path)
    except Refused as refused:
        raise FileError(f"Cannot read '{path}': {refused.what}; {refused.fix}.") from None


def _one_side(path: Path) -> tuple[Text, ...]:
    found = content(path)
    if isinstance(found, dict) or (found and _kind(found[0]) is not _texts):
        raise Refused("it is no list of texts", "with negative= both files are lists of texts; leave negative= out")
    return _side("the list", found)


def _contrast(path: Path) -> ContrastSet:
    found = content(path)
    more: dict[str, Any] = {}
    if isinstance(found, dict):
        if isinstance(words := found.get("description"), str):
            more["description"] = words
        found, lists = _from_object(found)
        if lists:
            (left, positive), (right, negative) = lists
            more.setdefault("description", f"positive: {left}, negative: {right}")
            return ContrastSet(path.stem, positive, negative, source=path.name, **more)
    if not found:
        raise Refused("its list is empty", "write at least one example of each side")
    parts = _kind(found[0])(path, found)
    return ContrastSet(path.stem, source=path.name, **parts, **more)


Lists = list[tuple[str, tuple[Text, ...]]]


def _from_object(found: dict[str, Any]) -> tuple[list[Row], Lists]:
    """The rows that a JSON object holds or is, or else its two lists of texts."""
    pairs = found.get("pairs")
    if isinstance(pairs, list):
        return [Row(f"pairs[{i}]", value) for i, value in enumerate(pairs)], []
    lists = {key: value for key, value in found.items() if isinstance(value, list) and not _is_conversation(value)}
    if {"positive", "negative"} <= set(lists):
        lists = {key: lists[key] for key in ("positive", "negative")}
    if len(lists) == 2:
        sides = {key: [Row(f"{key}[{i}]", v) for i, v in enumerate(value)] for key, value in lists.items()}
        return [], [(key, _side(f"its list '{brief(key)}'", rows)) for key, rows in sides.items()]
    return [Row("its object", found)], []


def _kind(row: Row) -> Callable[[Path, list[Row]], dict[str, Any]]:
    """How to read rows such as this one."""
    match row.value:
        case str():
            return _texts
        case list():
            return _texts if _is_conversation(row.value) else _pairs
        case {"answer_matching_behavior": _} | {"answer_not_matching_behavior": _}:
            return _questions
        case {"positive": _} | {"negative": _}:
            return _pairs
        case {"statement": _, "label": _}:
            return _labelled
        case dict():
            raise Refused(f"{row.where} has the keys {brief(', '.join(map(str, row.value)))}, which name no sides", FIX)
    raise Refused(f"{row.where} is {brief(row.value)}", FIX)


def _texts(path: Path, rows: list[Row]) -> dict[str, Any]:
    raise Refused(
        f"it is a list of {len(rows)} texts, which is one side of a contrast",
        f"pass the other side too: from_file('{path.name}', negative='other.json')",
    )


def _questions(path: Path, rows: list[Row]) -> dict[str, Any]:
    del path
    sides: tuple[list[str], list[str]] = ([], [])
    for row in rows:
        values = _values(row, ITEM_KEYS)
        for key, value in zip(ITEM_KEYS, values, strict=True):
            if not isinstance(_text(row.where, key, value), str):
                raise Refused(f"{row.where} has a conversation as its {key}", "write the question and answers as text")
        question, *answers = values
        for side, answer in zip(sides, answers, strict=True):
            side.append(f"{question.rstrip()} {answer.strip()}")
    items = tuple(row.value for row in rows)
    return {"positive": tuple(sides[0]), "negative": tuple(sides[1]), "paired": True, "items": items}


def _pairs(path: Path, rows: list[Row]) -> dict[str, Any]:
    del path
    keys = ("positive", "negative")
    sides: tuple[list[Text], list[Text]] = ([], [])
    for row in rows:
        pair = row.value
        if not isinstance(pair, list):
            pair = _values(row, keys)
        elif len(pair) != 2:
            raise Refused(f"{row.where} is a list of {len(pair)}", "a pair is [positive, negative]")
        for key, side, value in zip(keys, sides, pair, strict=True):
            side.append(_text(row.where, key, value))
    return {"positive": tuple(sides[0]), "negative": tuple(sides[1]), "paired": True}


def _labelled(path: Path, rows: list[Row]) -> dict[str, Any]:
    del path
    labels = {"1": 0, "true": 0, "0": 1, "false": 1}
    sides: tuple[list[Text], list[Text]] = ([], [])
    for row in rows:
        statement, label = _values(row, ("statement", "label"))
        side = labels.get(str(label).strip().casefold())
        if side is None:
            raise Refused(f"{row.where} has the label {brief(label)}", "a label is 1 for positive or 0 for negative")
        sides[side].append(_text(row.where, "statement", statement))
    for label, side in zip((1, 0), sides, strict=True):
        if not side:
            raise Refused(f"none of its {len(rows)} statements has the label {label}", "add the other side")
    return {"positive": tuple(sides[0]), "negative": tuple(sides[1])}


def _values(row: Row, keys: Sequence[str]) -> list[Any]:
    if not isinstance(row.value, dict):
        raise Refused(f"{row.where} is {brief(row.value)}, unlike the entries before", f"give it {', '.join(keys)}")
    missing = [key for key in keys if key not in row.value]
    if missing:
        raise Refused(f"{row.where} lacks {', '.join(missing)}", f"every entry needs {', '.join(keys)}")
    return [row.value[key] for key in keys]


def _side(what: str, rows: list[Row]) -> tuple[Text, ...]:
    if not rows:
        raise Refused(f"{what} is empty", "write at least one example of each side")
    return tuple(_text(row.where, "text", row.value) for row in rows)


def _text(where: str, what: str, value: Any) -> Text:
    """A text or conversation that can be tokenised, or the refusal of what is there instead."""
    if not isinstance(value, str) and not _is_conversation(value):
        raise Refused(
            f"{where} has {brief(value)} of type {type(value).__name__} as its {what}",
            "give it text, or a conversation as a list of messages with role and content",
        )
    words = [value] if isinstance(value, str) else [m["content"] for m in value]
    if not any(word.strip() for word in words):
        raise Refused(f"{where} has an empty {what}", "remove it or give it words")
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        raise Refused(f"{where} has half a surrogate pair in its {what}", "write the whole character") from None
    return value


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in value)
    )
