"""Which tokens of a text are read, and showing them."""

import dataclasses
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from steerfn._errors import DataError

Indices = int | slice | range | Sequence[int]
Position = str | Indices | Callable[[list[int]], str | Indices]
"""Where to read: "last" (real token), "mean" (over real tokens but the model's attention sinks), "mean_all" (over every
token), "answer" (the first token in which the two texts of a pair differ), an index, a slice, range or list of indices
(the mean over those tokens, each counted once), or a function from the token ids to any of these but "answer"."""


@dataclasses.dataclass(frozen=True)
class Read:
    """What is read of one text: the mean over some of its tokens.

    Attributes:
        ids: the token ids of the text.
        where: the indices of the tokens that are read, ascending.
        mean: whether attention sinks among them are to be left out, once it is known which these are.
    """

    ids: tuple[int, ...]
    where: tuple[int, ...]
    mean: bool = False

    @property
    def needed(self) -> tuple[int, ...]:
        """The tokens up to the last one that is read: in a causal model nothing after it matters."""
        return self.ids[: self.where[-1] + 1]


def reads(rows: Sequence[list[int]], position: Position, pairs: int | None = None) -> list[Read]:
    """What to read of each text.

    Args:
        rows: token ids of each text.
        position: where to read.
        pairs: where the first `pairs` texts and the next `pairs` texts are pairs, how many; "answer" needs them.

    Raises:
        DataError: a position outside a text, of a wrong type, or "answer" without pairs that differ.
    """
    if isinstance(position, str) and position == "answer":
        return _answers(rows, pairs)
    return [_read(ids, position(list(ids)) if callable(position) else position) for ids in rows]


def _read(ids: list[int], asked: Any) -> Read:
    return Read(tuple(ids), _where(ids, asked), isinstance(asked, str) and asked == "mean")


def _where(ids: list[int], asked: Any) -> tuple[int, ...]:
    if isinstance(asked, str) and asked in ("mean", "mean_all", "last"):
        asked = -1 if asked == "last" else slice(None)
    if isinstance(asked, slice):
        try:
            where = list(range(len(ids))[asked])
        except TypeError:
            raise DataError(f"position is {asked!r}, and the bounds of a slice are ints or None.") from None
    else:
        where = [_index(each, asked, len(ids)) for each in (asked if _is_several(asked) else [asked])]
    if not where:
        raise DataError(f"Position {asked!r} selects no token of a text of {len(ids)} tokens; select at least one.")
    return tuple(sorted({each % len(ids) for each in where}))


def _is_several(asked: Any) -> bool:
    return hasattr(asked, "__iter__") and not isinstance(asked, (str, bytes, dict)) and getattr(asked, "ndim", 1) == 1


def _index(each: Any, asked: Any, length: int) -> int:
    try:
        index = None if isinstance(each, bool) or "bool" in str(getattr(each, "dtype", "")) else operator.index(each)
    except TypeError:
        index = None
    if index is None:
        raise DataError(
            "position is 'last', 'mean', 'mean_all', 'answer' (for pairs), an index, a slice, range or list of "
            f"indices, or a function of the token ids, not {asked!r:.80}."
        )
    if not -length <= index < length:
        raise DataError(
            f"Position {index} is outside a text of {length} tokens; use an index it has, 'last' or 'mean'."
        )
    return index


def _answers(rows: Sequence[list[int]], pairs: int | None) -> list[Read]:
    if pairs is None or len(rows) != 2 * pairs:
        raise DataError(
            "position='answer' is the first token in which the two texts of a pair differ, so it needs pairs: as many "
            "positive as negative texts."
        )
    found: list[Read] = []
    for i in range(pairs):
        first, second = rows[i], rows[pairs + i]
        at = common_prefix(first, second)
        if at == min(len(first), len(second)):
            raise DataError(
                f"Pair {i} has no answer token: one of its texts is the beginning of the other ({len(first)} and "
                f"{len(second)} tokens, {at} in common); use position='last'."
            )
        found.append(Read(tuple(first), (at,)))
    return found + [Read(tuple(rows[pairs + i]), found[i].where) for i in range(pairs)]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def position_name(position: Position) -> str | int | list[int]:
    """A position as a JSON value, for metadata."""
    if isinstance(position, (str, int)):
        return position
    if callable(position):
        return getattr(position, "__name__", "function")
    if isinstance(position, (slice, range)):
        return str(position)
    asked: Any = position
    return [operator.index(each) for each in asked] if _is_several(asked) else operator.index(asked)


def position_named(name: Any) -> Position | None:
    """The position that `position_name` made a name of; None where the name does not say, as that of a function."""
    if isinstance(name, str):
        bounds = re.fullmatch(r"(slice|range)\(([-\dNone, ]+)\)", name)
        if bounds is None:
            return name if name in ("last", "mean", "mean_all", "answer") else None
        numbers = [None if each.strip() == "None" else int(each) for each in bounds[2].split(",")]
        return slice(*numbers) if bounds[1] == "slice" else range(*numbers)  # pyright: ignore
    if isinstance(name, list):
        return name if all(type(each) is int for each in name) else None
    return name if type(name) is int else None


def explained(tokenizer: Any, found: Sequence[Read], context: int = 6, limit: int = 6) -> str:
    """A few lines that show, by its text, the exact token that is read of each text.

    Example:
        >>> print(explained(tokenizer, found))  # doctest: +SKIP
        text 0: token 57 of 59, 'A'   in '... the answer is ([A])'
    """
    lines = []
    for i, read in enumerate(found[:limit]):
        first, last = read.where[0], read.where[-1]
        before = tokenizer.decode(read.ids[max(0, first - context) : first])
        inside = tokenizer.decode([read.ids[i] for i in read.where])
        after = tokenizer.decode(read.ids[last + 1 : last + 1 + context])
        which = f"token {last}" if len(read.where) == 1 else f"tokens {first} to {last}"
        dots = "..." if first > context else ""
        lines.append(
            f"text {i}: {which} of {len(read.ids)}: {dots}{before!s}[[{inside!s}]]{after!s}".replace("\n", "\\n")
        )
    if len(found) > limit:
        lines.append(f"... and {len(found) - limit} more")
    return "\n".join(lines)
