"""Which tokens of a text are read, and showing them."""

import dataclasses
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from steerfn.run._text import common_prefix
from steerfn.values import DataError, as_integer

Indices = int | slice | range | Sequence[int]
Position = str | Indices | Callable[[list[int]], str | Indices]
"""Where to read: "last" (real token), "mean" (over real tokens but the model's attention sinks), "mean_all" (over every
token), "answer" (the first token in which the two texts of a pair differ), an index, a slice, range or list of indices
(the mean over those tokens, each counted once), or a function from the token ids to any of these but "answer"."""


WORDS = ("last", "mean", "mean_all", "answer")
"""The positions that are words."""


@dataclasses.dataclass(frozen=True)
class Read:
    """One text and the tokens over which its hidden state is averaged.

    Attributes:
        ids: the token ids of the text.
        where: the indices of the tokens that are read, ascending.
        mean: whether attention sinks among them are to be left out, once it is known which these are.
        apart: whether the tokens are not averaged: each gives a state of its own, in their order.
    """

    ids: tuple[int, ...]
    where: tuple[int, ...]
    mean: bool = False
    apart: bool = False

    @property
    def needed(self) -> tuple[int, ...]:
        """The tokens up to the last one that is read: in a causal model nothing after it matters."""
        return self.ids[: self.where[-1] + 1]


def reads(rows: Sequence[list[int]], position: Position, pairs: int | None = None) -> list[Read]:
    """The tokens to read of each text.

    Args:
        pairs: where the first `pairs` texts and the next `pairs` texts are pairs, how many; "answer" needs them.

    Raises:
        DataError: a position outside a text, of a wrong type, or "answer" without pairs that differ.
    """
    if isinstance(position, str) and position == "answer":
        return _answers(rows, pairs)
    positions = [position(list(ids)) if callable(position) else position for ids in rows]
    return [
        Read(tuple(ids), _where(ids, each), isinstance(each, str) and each == "mean")
        for ids, each in zip(rows, positions, strict=True)
    ]


def _where(ids: list[int], position: Any) -> tuple[int, ...]:
    if isinstance(position, str) and position in WORDS[:-1]:
        position = -1 if position == "last" else slice(None)
    if isinstance(position, slice):
        try:
            where = list(range(len(ids))[position])
        except TypeError:
            raise DataError(f"position is {position!r}, and the bounds of a slice are ints or None.") from None
    else:
        where = [_index(each, position, len(ids)) for each in (position if _is_several(position) else [position])]
    if not where:
        raise DataError(f"Position {position!r} selects no token of a text of {len(ids)} tokens; select at least one.")
    return tuple(sorted({each % len(ids) for each in where}))


def _is_several(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes, dict)) and getattr(value, "ndim", 1) == 1


def _index(each: Any, position: Any, length: int) -> int:
    if (index := as_integer(each)) is None:
        raise DataError(
            "position is 'last', 'mean', 'mean_all', 'answer' (for pairs), an index, a slice, range or list of "
            f"indices, or a function of the token ids, not {position!r:.80}."
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
    answers: list[Read] = []
    for i in range(pairs):
        first, second = rows[i], rows[pairs + i]
        at = common_prefix(first, second)
        if at == min(len(first), len(second)):
            raise DataError(
                f"Pair {i} has no answer token: one of its texts is the beginning of the other ({len(first)} and "
                f"{len(second)} tokens, {at} in common); use position='last'."
            )
        answers.append(Read(tuple(first), (at,)))
    return answers + [Read(tuple(rows[pairs + i]), answers[i].where) for i in range(pairs)]


def position_name(position: Position) -> str | int | list[int]:
    """A position as a JSON value, for metadata."""
    if isinstance(position, (str, int)):
        return position
    if callable(position):
        return getattr(position, "__name__", "function")
    if isinstance(position, (slice, range)):
        return str(position)
    indices: Any = position
    return [operator.index(each) for each in indices] if _is_several(indices) else operator.index(indices)


def position_named(name: Any) -> Position | None:
    """The position that `position_name` made a name of; None where the name does not say, as that of a function."""
    if isinstance(name, str):
        bounds = re.fullmatch(r"(slice|range)\(([-\dNone, ]+)\)", name)
        if bounds is None:
            return name if name in WORDS else None
        numbers = [None if each.strip() == "None" else int(each) for each in bounds[2].split(",")]
        return slice(*numbers) if bounds[1] == "slice" else range(*numbers)  # pyright: ignore
    if isinstance(name, list):
        return name if all(type(each) is int for each in name) else None
    return name if type(name) is int else None


CONTEXT, SHOWN = 6, 6
"""Tokens shown around the one that is read, and texts of which it is shown."""


def describe_reads(tokenizer: Any, reads: Sequence[Read]) -> str:
    """A few lines that show, by its text, the exact token that is read of each text.

    Example:
        >>> print(describe_reads(tokenizer, reads([tokenizer.encode("It is (A)")], -2)))
        text 0: token 3 of 5: It is ([[A]])
    """
    lines = []
    for i, read in enumerate(reads[:SHOWN]):
        first, last = read.where[0], read.where[-1]
        before = tokenizer.decode(read.ids[max(0, first - CONTEXT) : first])
        inside = tokenizer.decode([read.ids[i] for i in read.where])
        after = tokenizer.decode(read.ids[last + 1 : last + 1 + CONTEXT])
        which = f"token {last}" if len(read.where) == 1 else f"tokens {first} to {last}"
        dots = "..." if first > CONTEXT else ""
        lines.append(
            f"text {i}: {which} of {len(read.ids)}: {dots}{before!s}[[{inside!s}]]{after!s}".replace("\n", "\\n")
        )
    if len(reads) > SHOWN:
        lines.append(f"... and {len(reads) - SHOWN} more")
    return "\n".join(lines)
