"""Which tokens of a text are read, and showing them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from steerfn._errors import DataError
from steerfn._numbers import plain_number

Position = str | int | Callable[[list[int]], int]
"""Where to read: "last" (real token), "mean" (over real tokens), "answer" (the first token in which the two texts of a
pair differ), an index, or a function of the token ids."""


@dataclasses.dataclass(frozen=True)
class Read:
    """What is read of one text: the mean over some of its tokens.

    Attributes:
        ids: the token ids of the text.
        where: the indices of the tokens that are read, ascending.
    """

    ids: tuple[int, ...]
    where: tuple[int, ...]

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
    if position == "answer":
        return _answers(rows, pairs)
    return [Read(tuple(ids), _where(ids, position)) for ids in rows]


def _where(ids: list[int], position: Position) -> tuple[int, ...]:
    if position == "mean":
        return tuple(range(len(ids)))
    where: Any = -1 if position == "last" else position(list(ids)) if callable(position) else position
    where = plain_number(where)
    if isinstance(where, bool) or not isinstance(where, int):
        raise DataError(
            f"position is 'last', 'mean', 'answer' (for pairs), an index or a function of the token ids, not {where!r}."
        )
    if not -len(ids) <= where < len(ids):
        raise DataError(
            f"Position {where} is outside a text of {len(ids)} tokens; use an index it has, 'last' or 'mean'."
        )
    return (where % len(ids),)


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


def position_name(position: Position) -> str | int:
    """A position as a JSON value, for metadata."""
    return position if isinstance(position, (str, int)) else getattr(position, "__name__", "function")


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
        inside = tokenizer.decode(read.ids[first : last + 1])
        after = tokenizer.decode(read.ids[last + 1 : last + 1 + context])
        which = f"token {last}" if len(read.where) == 1 else f"tokens {first} to {last}"
        dots = "..." if first > context else ""
        lines.append(
            f"text {i}: {which} of {len(read.ids)}: {dots}{before!s}[[{inside!s}]]{after!s}".replace("\n", "\\n")
        )
    if len(found) > limit:
        lines.append(f"... and {len(found) - limit} more")
    return "\n".join(lines)
