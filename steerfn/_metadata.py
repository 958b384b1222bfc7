"""Metadata: what a vector says of itself, as an immutable JSON value."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from steerfn._errors import DataError
from steerfn._numbers import plain_number


class Metadata(Mapping[str, Any]):
    """An immutable mapping of JSON values (text, numbers, booleans, None, lists, mappings).

    Raises:
        DataError: a key that is not text, or a value that JSON cannot hold.
    """

    __slots__ = ("_text",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        values = {} if values is None else values
        if isinstance(values, Metadata):
            self._text = values._text
            return
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise DataError(f"Metadata is a mapping from names to JSON values, not {values!r}.")
        try:
            self._text = json.dumps(dict(values), sort_keys=True, allow_nan=False, default=_plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"Metadata holds JSON values only (text, numbers, lists, mappings): {error}.") from None

    def __getitem__(self, key: str) -> Any:
        return json.loads(self._text)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(self._text))

    def __len__(self) -> int:
        return len(json.loads(self._text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(frozenset(self))  # not of the values: 1, 1.0 and True are equal and read differently

    def __repr__(self) -> str:
        return f"Metadata({json.loads(self._text)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Metadata, (json.loads(self._text),)


def _plain(value: Any) -> Any:
    """What JSON makes of a value that it does not know: numpy's numbers are numbers."""
    if (plain := plain_number(value)) is value:
        raise TypeError(f"{value!r:.80} of type {type(value).__name__}")
    return plain
