"""Interpret the rows of a table: which keys or labels are the positive side. Known names only, no guesses."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.datasets._content import DataRow
from steerfn.datasets._set import ITEM_KEYS
from steerfn.run import Text
from steerfn.values.files import Refused, brief

SIDES = (
    ("positive", "negative"),
    ("pos", "neg"),
    ("chosen", "rejected"),
    ("harmful", "harmless"),
    ("non_compliant_responses", "compliant_responses"),  # CAST steers towards refusal
)
"""Names of columns and lists that say which side is which: the positive one, and its opposite."""
LABELS = (
    ("1", "0"),
    ("positive", "negative"),
    ("pos", "neg"),
    ("harmful", "harmless"),
    ("unsafe", "safe"),
    ("toxic", "non-toxic"),
)
"""Values of a label that say which side is which."""
QUESTIONS = (
    ITEM_KEYS,
    ("prompt", "correct", "incorrect"),
    ("question", "best answer", "best incorrect answer"),
)
"""A question, the answer that shows the behaviour, and one that does not: of CAA, its MMLU, and TruthfulQA."""
TEXTS = ("text", "statement", "sentence", "prompt", "instruction", "question", "response", "output", "goal", "content")
LABEL = ("label", "labels", "category", "class", "target")
XSTEST = ("type", "prompt", "focus")
"""The columns of XSTest before it had labels: types that begin with "contrast" are unsafe."""
ASK = (
    "say which is which: sides=('the positive one', 'the negative one'), of columns, of lists or of labels; or write a "
    "list of [positive, negative] pairs"
)


@dataclasses.dataclass(frozen=True)
class Names:
    """The columns and labels of a table that the caller has named.

    Attributes:
        sides: the names of the positive and the negative column, list or label.
        text: the column of texts that have labels.
        label: the column of labels.
    """

    sides: tuple[str, str] | None = None
    text: str | None = None
    label: str | None = None


def read_rows(rows: Sequence[DataRow], names: Names) -> dict[str, Any]:
    """The arguments of `ContrastSet` from rows of one form.

    Raises:
        Refused: rows that do not say which side is which, or one without its keys or text.
    """
    first = rows[0]
    if is_conversation(first.value) or isinstance(first.value, str):
        raise Refused(
            f"it is a list of {len(rows)} texts, which is one side of a contrast",
            "pass the other side too, as negative=",
        )
    if isinstance(first.value, (list, tuple)):
        return _pairs(rows, None)
    if not isinstance(first.value, Mapping):
        raise Refused(f"{first.where} is {brief(first.value)}", ASK)
    keys = set(first.value)
    columns = None if names.sides is None else (_key(names.sides[0], keys), _key(names.sides[1], keys))
    if columns is not None and set(columns) <= keys:
        return _pairs(rows, columns)
    text = _only(TEXTS, keys) if names.text is None else _key(names.text, keys)
    label = _only(LABEL, keys) if names.label is None else _key(names.label, keys)
    if names.sides is None:
        for question in QUESTIONS:
            if set(question) & keys >= set(question[1:]) or (question == ITEM_KEYS and set(question[1:]) & keys):
                return _questions(rows, question)
        for sides in SIDES:
            if set(sides) <= keys or (sides == SIDES[0] and set(sides) & keys):
                return _pairs(rows, sides)
    if text in keys and label in keys:
        return _by_label(rows, str(text), str(label), names.sides)
    if set(XSTEST) <= keys and names.sides is None:
        unsafe = ("unsafe" if str(row.value.get("type")).startswith("contrast") else "safe" for row in rows)
        marked = [DataRow(row.where, {**row.value, "label": kind}) for row, kind in zip(rows, unsafe, strict=True)]
        return _by_label(marked, "prompt", "label", None)
    has = f"{first.where} has the keys {brief(', '.join(map(str, first.value)))}"
    if names.sides is not None:
        raise Refused(
            f"{has}; {' and '.join(names.sides)} are neither two of them nor the labels of texts that it knows",
            "name two columns with sides=, or the labels with sides= and their columns with text= and label=",
        )
    raise Refused(f"{has}, which name no sides", ASK)


def _key(name: str, keys: set[Any]) -> str:
    """A name as the table writes it: headers of files are read in lower case."""
    return name if name in keys else next((key for key in keys if str(key).casefold() == name.casefold()), name)


def has_one_text(value: Mapping[str, Any]) -> bool:
    """Whether a row has one column that is known to be its text."""
    return _only(TEXTS, set(value)) is not None


def _only(known: Sequence[str], keys: set[Any]) -> str | None:
    """The one key that is known; None where it is not clear which is meant."""
    present = [name for name in known if name in keys]
    return present[0] if len(present) == 1 else None


def _questions(rows: Sequence[DataRow], keys: Sequence[str]) -> dict[str, Any]:
    sides: tuple[list[str], list[str]] = ([], [])
    items = []
    for row in rows:
        values = _values(row, keys)
        for key, value in zip(keys, values, strict=True):
            if not isinstance(as_text(row.where, key, value), str):
                raise Refused(f"{row.where} has a conversation as its {key}", "write the question and answers as text")
        question, *answers = values
        for side, answer in zip(sides, answers, strict=True):
            side.append(f"{question.rstrip()} {answer.strip()}")
        items.append({**row.value, **dict(zip(ITEM_KEYS, values, strict=True))})
    return {"positive": tuple(sides[0]), "negative": tuple(sides[1]), "paired": True, "items": tuple(items)}


def _pairs(rows: Sequence[DataRow], keys: tuple[str, str] | None) -> dict[str, Any]:
    sides: tuple[list[Text], list[Text]] = ([], [])
    for row in rows:
        pair = row.value
        if isinstance(pair, Mapping):
            pair = _values(row, keys or SIDES[0])
        elif not isinstance(pair, (list, tuple)):
            raise Refused(
                f"{row.where} is {brief(pair)}, unlike the entries before",
                f"give it {', '.join(keys or SIDES[0])}",
            )
        elif len(pair) != 2:
            raise Refused(f"{row.where} is a list of {len(pair)}", "a pair is [positive, negative]")
        prompt = row.value.get("prompt") if isinstance(row.value, Mapping) else None
        for key, side, value in zip(keys or SIDES[0], sides, pair, strict=True):
            text = as_text(row.where, key, value)
            side.append(text if prompt is None or "prompt" in (keys or ()) else _after(row.where, prompt, text))
    return {"positive": tuple(sides[0]), "negative": tuple(sides[1]), "paired": True}


def _after(where: str, prompt: Any, text: Text) -> Text:
    """An answer with the prompt before it, as preference data is written; the prompt may be in it already."""
    prompt = as_text(where, "prompt", prompt)
    if isinstance(prompt, str) and isinstance(text, str):
        return text if text.startswith(prompt) else f"{prompt.rstrip()} {text.strip()}"
    begun = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    rest = [{"role": "assistant", "content": text}] if isinstance(text, str) else [*text]
    return rest if [*map(dict, rest)][: len(begun)] == [*map(dict, begun)] else [*begun, *rest]


def _by_label(rows: Sequence[DataRow], text: str, label: str, sides: tuple[str, str] | None) -> dict[str, Any]:
    values = [_values(row, (text, label)) for row in rows]
    labels = [_label(value) for _, value in values]
    named = tuple(map(_label, sides)) if sides is not None else _label_sides(rows, labels)
    by_name: dict[str, list[Text]] = {name: [] for name in named}
    for row, (value, _), kind in zip(rows, values, labels, strict=True):
        if kind in by_name:
            by_name[kind].append(as_text(row.where, text, value))
        elif sides is None:
            raise Refused(
                f"{row.where} has the label {brief(kind)}, and the others are {' and '.join(named)}",
                "pass sides=('the positive label', 'the negative label'), and other labels are left out",
            )
    for name, side in by_name.items():
        if not side:
            raise Refused(f"none of its {len(rows)} texts has the label {name}", "add the other side")
    return {"positive": tuple(by_name[named[0]]), "negative": tuple(by_name[named[1]])}


def _label(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # as pandas writes integers beside a gap
        value = int(value)
    written = str(value).strip().casefold()
    return {"true": "1", "false": "0"}.get(written, written)


def _label_sides(rows: Sequence[DataRow], labels: Sequence[str]) -> tuple[str, str]:
    """The two labels, where their names say which is positive."""
    for sides in LABELS:
        if labels[0] in sides:
            return sides
    some = ", ".join(dict.fromkeys(map(brief, labels[:50])))
    raise Refused(
        f"{rows[0].where} has the label {brief(labels[0])}, which does not say whether it is the positive side (the "
        f"labels are {some})",
        "pass sides=('the positive label', 'the negative label')",
    )


def _values(row: DataRow, keys: Sequence[str]) -> list[Any]:
    if not isinstance(row.value, Mapping):
        raise Refused(f"{row.where} is {brief(row.value)}, unlike the entries before", f"give it {', '.join(keys)}")
    missing = [key for key in keys if key not in row.value]
    if missing:
        raise Refused(f"{row.where} lacks {', '.join(missing)}", f"every entry needs {', '.join(keys)}")
    return [row.value[key] for key in keys]


def as_side(what: str, rows: Sequence[DataRow]) -> tuple[Text, ...]:
    """The texts of one side: texts, or the one column of texts that rows have.

    Raises:
        Refused: no rows, or one without a text.
    """
    if not rows:
        raise Refused(f"{what} is empty", "write at least one example of each side")
    if isinstance(rows[0].value, Mapping) and (column := _only(TEXTS, set(rows[0].value))):
        return tuple(as_text(row.where, column, _values(row, (column,))[0]) for row in rows)
    return tuple(as_text(row.where, "text", row.value) for row in rows)


def as_text(where: str, what: str, value: Any) -> Text:
    """A text or conversation that can be tokenised, or the refusal of what is there instead."""
    if not isinstance(value, str) and not is_conversation(value):
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


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages with role and content."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in value)
    )
