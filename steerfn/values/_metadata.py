"""Metadata: what a vector says of itself, as an immutable JSON value."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from steerfn.values._checks import plain_number
from steerfn.values._errors import DataError

MAX_KEYS, MAX_KEY = 10_000, 1_000
"""Most keys, and the longest: far beyond what any method writes, and small enough to list."""


class Metadata(Mapping[str, Any]):
    """An immutable mapping of JSON values (text, numbers, booleans, None, lists, mappings).

    Attributes:
        origin: the value of "model" as JSON text, if there is one: `torch.compile` can read it, and guards by it alone.
        checked_for: what stands for the model that `origin` was compared with, so that a check is made, and its warning
            given, once. Not part of the value: it is neither compared nor saved.

    Raises:
        DataError: a key that is not text, or a value that JSON cannot hold.

    Example:
        >>> from steerfn.values import Metadata
        >>> note = Metadata({"method": "mean_difference", "counts": [3, 3]})
        >>> note["method"], note == {"method": "mean_difference", "counts": [3, 3]}
        ('mean_difference', True)
    """

    # JSON by key: an access parses one value, whose copy belongs to the caller, and never the whole.
    __slots__ = ("_texts", "origin", "checked_for")

    def __init__(self, values: Mapping[str, Any] | None = None, *, checked_for: Any = None) -> None:
        values = {} if values is None else values
        self.checked_for = checked_for
        if isinstance(values, Metadata):
            self._texts: dict[str, str] = values._texts
            self.origin: str | None = values.origin
            self.checked_for = checked_for or values.checked_for
            return
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise DataError(f"Metadata is a mapping from names to JSON values, not {values!r:.200}.")
        if len(values) > MAX_KEYS or any(len(key) > MAX_KEY for key in values):
            raise DataError(
                f"Metadata has {MAX_KEYS} keys of {MAX_KEY} characters at most, and these are {len(values)} keys of up "
                f"to {max(map(len, values))}; put long lists into one value."
            )
        try:
            self._texts = {
                key: json.dumps(values[key], sort_keys=True, allow_nan=False, default=_plain) for key in sorted(values)
            }
            self.origin = self._texts.get("model")
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"Metadata holds JSON values only (text, numbers, lists, mappings): {error}.") from None

    def __getitem__(self, key: str) -> Any:
        return json.loads(self._texts[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(frozenset(self))  # not of the values: 1, 1.0 and True are equal and read differently

    def __repr__(self) -> str:
        return f"Metadata({dict(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Metadata, (dict(self),)


def _plain(value: Any) -> Any:
    """The JSON value of an object that `json` does not know: numpy's numbers are numbers."""
    if (plain := plain_number(value)) is value:
        raise TypeError(f"{value!r:.80} of type {type(value).__name__}")
    return plain
