"""Reading the files in which contrast sets are published, told apart by what is in them."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from steerfn.datasets._content import DataRow, content
from steerfn.datasets._rows import (
    ASK,
    LABEL,
    SIDES,
    TEXTS,
    Names,
    as_side,
    as_text,
    has_one_text,
    is_conversation,
    read_rows,
)
from steerfn.datasets._set import ContrastSet
from steerfn.run import Text
from steerfn.values import DataError, FileError, public
from steerfn.values.files import Refused, brief

T = TypeVar("T")


@public
def from_file(
    path: str | os.PathLike[str],
    negative: str | os.PathLike[str] | None = None,
    *,
    sides: tuple[str, str] | None = None,
    text: str | None = None,
    label: str | None = None,
    split: str = "train",
) -> ContrastSet:
    """A contrast set from a file, in the format that its content shows.

    - Questions: `question`, `answer_matching_behavior`, `answer_not_matching_behavior` (CAA, Anthropic's evals);
      `prompt`, `correct`, `incorrect` (CAA's MMLU and TruthfulQA); `Question`, `Best Answer`, `Best Incorrect Answer`
      (TruthfulQA). Gives pairs and items.
    - Pairs: `[positive, negative]`; columns `positive` and `negative`, `pos` and `neg`, `harmful` and `harmless` (of
      CAST's conditions), `chosen` and `rejected` (after `prompt`, where there is one); `{"pairs": [...]}`.
    - Traits (persona vectors): `instruction` with `pos` and `neg`, and `questions`. Gives pairs of conversations, each
      instruction as the system's message before each question.
    - Labels: a column of texts and one of labels: 1 and 0, true and false, positive and negative, harmful and harmless,
      unsafe and safe (XSTest). Gives two sides that are not pairs.
    - Two lists: `{"positive": [...], "negative": [...]}`, or CAST's `non_compliant_responses` (positive) and
      `compliant_responses`. No pairs.
    - One side: a list of texts (RepE's emotions) or rows with one column of texts (refusal's instructions); needs
      `negative`. No pairs.

    Rows come as a JSON list, JSON lines, CSV, TSV, parquet (needs pyarrow), or plain text with one example a line; in
    an object with splits, those of `split`. Where the names do not say which side is positive nothing is guessed: the
    error asks for `sides`. Of IBM's refusal file the refusals are positive, although they come second.

    A text is a string, or a conversation as a list of messages with role and content. Questions and answers become
    the texts `question.rstrip() + " " + answer.strip()`; the entries themselves, with all that the file says of
    them, become `items`. Lists that only happen to be equally long are not taken for pairs; where they are,
    `dataclasses.replace(d, paired=True)` says so. Files are UTF-8, with or without a byte order mark.

    Args:
        path: the file. It may come from anyone: nothing in it is executed, and 128 MiB are read at most,
            with 3 million lines, commas and brackets.
        negative: the file of the other side, where each file is a list of texts.
        sides: the names of the positive and of the negative side: of two columns, two lists, or two labels (texts with
            other labels are left out).
        text: the column of texts, where labels tell the sides apart and several columns may be meant.
        label: the column of labels.
        split: of an object with splits.

    Raises:
        FileError: a file that is missing, too large, binary, broken or of another format, one that does not say
            which side is positive, an entry without its keys or without text, or a side without examples; it names
            the file, the place and the fix.

    Source: the formats of Rimsky et al. 2024 (CAA), Perez et al. 2022 (Anthropic evals), Zou et al. 2023 (RepE),
    Lee et al. 2024 (CAST), Röttger et al. 2024 (XSTest) and Chen et al. 2025 (persona vectors).

    Example:
        >>> import json, pathlib, tempfile, steerfn as sf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "mood.json")
        ...     _ = path.write_text(json.dumps([["What a lovely day.", "What an awful day."]]))
        ...     sf.datasets.from_file(path)
        ContrastSet('mood', 1 pair)
    """
    names = _names(sides, text, label, FileError)
    first = _path(path)
    if negative is None:
        return _refusing(first, lambda path: _contrast(path, names, split))
    second = _path(negative)
    return ContrastSet(
        name=f"{first.stem} vs {second.stem}",
        positive=_refusing(first, lambda path: _one_side(path, split)),
        negative=_refusing(second, lambda path: _one_side(path, split)),
        source=f"{first.name}, {second.name}",
    )


@public
def from_rows(
    rows: Any,
    *,
    sides: tuple[str, str] | None = None,
    text: str | None = None,
    label: str | None = None,
    name: str = "rows",
) -> ContrastSet:
    """A contrast set from rows at hand: pairs, dicts, a pandas DataFrame, or a table of `datasets`.

    The rows mean what those of `from_file` mean, by the same names.

    Args:
        rows: pairs of texts, dicts, a DataFrame, or a `datasets.Dataset`.
        sides: the names of the positive and of the negative column or label.
        text: the column of texts, where labels tell the sides apart.
        label: the column of labels.
        name: what to call the set.

    Raises:
        DataError: no rows, rows that do not say which side is positive, or one without its keys or text.

    Example:
        >>> import steerfn as sf
        >>> sf.datasets.from_rows([{"chosen": "Gladly.", "rejected": "No."}], name="helpful")
        ContrastSet('helpful', 1 pair)
    """
    names = _names(sides, text, label, DataError)
    if callable(records := getattr(rows, "to_dict", None)) and hasattr(rows, "columns"):  # pandas
        rows = records("records")
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise DataError(
            f"rows must be a list of pairs or of dicts, or a table, not {brief(rows)} of type {type(rows).__name__}."
        )
    try:
        entries = [DataRow(f"row {i}", row) for i, row in enumerate(rows)]
        if not entries:
            raise Refused("there are no rows", "pass at least one")
        return ContrastSet(name, **read_rows(entries, names))
    except Refused as refused:
        raise DataError(f"Cannot make a contrast set of these rows: {refused.what}; {refused.fix}.") from None


def _names(sides: Any, text: Any, label: Any, error: type[FileError] | type[DataError]) -> Names:
    if sides is not None and (not isinstance(sides, (tuple, list)) or len(sides) != 2 or len({*map(str, sides)}) != 2):
        raise error(f"sides are two different names, the positive one first, not {brief(sides)}.")
    for what, column in (("text", text), ("label", label)):
        if column is not None and not isinstance(column, str):
            raise error(f"{what} is the name of a column, not {brief(column)} of type {type(column).__name__}.")
    return Names(None if sides is None else (str(sides[0]), str(sides[1])), text, label)


def _path(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise FileError(
            f"The path of a file of contrast pairs must be a str or a Path, not {brief(path)} of type "
            f"{type(path).__name__}."
        ) from None


def _refusing(path: Path, reading: Callable[[Path], T]) -> T:
    """Apply `reading` to a path; errors name the file."""
    try:
        return reading(path)
    except Refused as refused:
        raise FileError(f"Cannot read '{path}': {refused.what}; {refused.fix}.") from None


def _one_side(path: Path, split: str) -> tuple[Text, ...]:
    entries = content(path)
    if isinstance(entries, dict) and isinstance(entries.get(split), list):
        entries = [DataRow(f"{split}[{i}]", value) for i, value in enumerate(entries[split])]
    first = entries[0].value if isinstance(entries, list) and entries else ""
    if isinstance(entries, dict) or not (_is_text(first) or (isinstance(first, dict) and has_one_text(first))):
        raise Refused("it is not a list of texts", "with negative= both files are lists of texts; leave negative= out")
    return as_side("the list", entries)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or is_conversation(value)


def _contrast(path: Path, names: Names, split: str) -> ContrastSet:
    document = content(path)
    more: dict[str, Any] = {}
    if isinstance(document, dict):
        if isinstance(words := document.get("description"), str):
            more["description"] = words
        document, lists = _from_object(document, names, split)
        if lists:
            (left, positive), (right, negative) = lists
            more.setdefault("description", f"positive: {left}, negative: {right}")
            return ContrastSet(path.stem, positive, negative, source=path.name, **more)
    if not document:
        raise Refused("its list is empty", "write at least one example of each side")
    return ContrastSet(path.stem, source=path.name, **read_rows(document, names), **more)


Lists = list[tuple[str, tuple[Text, ...]]]


def _from_object(document: dict[str, Any], names: Names, split: str) -> tuple[list[DataRow], Lists]:
    """The rows that a JSON object holds or is, or else its two lists of texts."""
    if isinstance(pairs := document.get("pairs"), list):
        return [DataRow(f"pairs[{i}]", value) for i, value in enumerate(pairs)], []
    if isinstance(document.get("instruction"), list) and isinstance(document.get("questions"), list):
        return _trait(document["instruction"], document["questions"]), []
    lists = {key: value for key, value in document.items() if isinstance(value, list) and not is_conversation(value)}
    if split in lists and all(isinstance(row, dict) for row in lists[split]):
        return [DataRow(f"{split}[{i}]", value) for i, value in enumerate(lists[split])], []
    for sides in (names.sides, *SIDES):
        if sides is not None and set(sides) <= set(lists):
            rows = {key: [DataRow(f"{key}[{i}]", v) for i, v in enumerate(lists[key])] for key in sides}
            return [], [(key, as_side(f"its list '{brief(key)}'", side)) for key, side in rows.items()]
    columns = [key for key in lists if key in (*TEXTS, *LABEL, names.text, names.label)]
    if len(columns) > 1 and len({len(lists[key]) for key in columns}) == 1:  # a table by columns
        values = zip(*(lists[key] for key in columns), strict=True)
        return [DataRow(f"row {i}", dict(zip(columns, row, strict=True))) for i, row in enumerate(values)], []
    if len(lists) > 1 and not any(_is_text(value) for value in document.values()):
        named = " and ".join(f"'{brief(key)}'" for key in lists)
        raise Refused(f"it has the lists {named} and does not say which is positive", ASK)
    return [DataRow("its object", document)], []


def _trait(instructions: list[Any], questions: list[Any]) -> list[DataRow]:
    """Each instruction before each question, as persona vectors are read."""
    rows = []
    for i, instruction in enumerate(instructions):
        if not isinstance(instruction, dict) or not {"pos", "neg"} <= set(instruction):
            raise Refused(f"instruction[{i}] is {brief(instruction)}", "give it pos and neg")
        for j, question in enumerate(questions):
            where = f"instruction[{i}] with questions[{j}]"
            user = {"role": "user", "content": as_text(where, "question", question)}
            system = {side: as_text(where, side, instruction[side]) for side in ("pos", "neg")}
            rows.append(DataRow(where, {side: [{"role": "system", "content": system[side]}, user] for side in system}))
    return rows
