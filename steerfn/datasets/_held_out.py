"""Holding examples out: what a direction is chosen by is not what it was made of, and no text is on both sides.

Wholes (the same text, a group) are taken in an order that the seed gives, by one of two rules. What only needs enough
to judge by takes them until it has that. A set that is split promises its sizes, so a whole that would go beyond them
is passed over.
"""

import collections
import hashlib
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from steerfn.run import Text, same_text
from steerfn.values import number_groups_by_kind

T = TypeVar("T", str, int)


def held_out(texts: Sequence[Text], part: float, seed: int) -> list[bool]:
    """Which texts to hold out: about a part of them, at least one, and never all.

    Texts that are the same but for case and white space stay together, so none is on both sides; where all are the
    same, none is held out. Depends on the texts and the seed, not on their order.
    """
    keys = [same_text(text) for text in texts]
    chosen = _take(sorted(set(keys), key=lambda key: _order(key, seed)), [keys], part)
    return [key in chosen for key in keys]


def held_out_sides(
    sides: Mapping[str, Sequence[Text]], part: float, seed: int, groups: Any = None
) -> dict[str, list[bool]]:
    """Which texts of some sides to hold out: as `held_out` says, or by groups, which are held out as wholes.

    Args:
        part: about how many of each side.
        seed: another seed holds out others.
        groups: a label for each text, one side after the other, or by side. A group is held out from all sides at once.

    Raises:
        DataError: groups that do not fit.
    """
    if groups is None:
        return {name: held_out(texts, part, seed) for name, texts in sides.items()}
    units = number_groups_by_kind(groups, {name: len(texts) for name, texts in sides.items()})
    order = list(dict.fromkeys(unit for own in units.values() for unit in own))
    random.Random(seed).shuffle(order)
    chosen = _take(order, list(units.values()), part)
    return {name: [unit in chosen for unit in own] for name, own in units.items()}


def _take(order: Sequence[T], sides: Sequence[Sequence[T]], part: float) -> set[T]:
    """Wholes in an order until every side has its part of them, at least one; never the last whole.

    Args:
        sides: the whole of each text, by side.
        part: to take of each side.
    """
    counts, left = [collections.Counter(own) for own in sides], [max(1, round(part * len(own))) for own in sides]
    taken: set[T] = set()
    for whole in order[:-1]:
        if all(count <= 0 for count in left):
            break
        taken.add(whole)
        left = [count - own[whole] for count, own in zip(left, counts, strict=True)]
    return taken


def _order(key: str, seed: int) -> bytes:
    # A hash and not `random`: the same on every machine and version of Python, and no matter the order of the set.
    return hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).digest()


Entry = tuple[int, int]
"""(0 for positive or 1 for negative, index)."""


def held_out_indices(
    positive: Sequence[Text], negative: Sequence[Text], units: Sequence[int], held_out: float, seed: int
) -> tuple[set[int], set[int]] | None:
    """The indices to hold out of each side; None where no division leaves something on both sides of it.

    Args:
        units: which texts belong together, the positives first: pairs, groups, or each text by itself.
    """
    wholes = sorted(_wholes(positive, negative, units).items(), key=lambda whole: _order(whole[0], seed))
    counts = [[sum(side == each for side, _ in entries) for each in (0, 1)] for _, entries in wholes]
    totals = len(positive), len(negative)
    targets = [min(max(round(held_out * n), 1), n - 1) for n in totals]
    taken: set[int] = set()
    have = [0, 0]

    def take(which: int, limits: Sequence[int]) -> None:
        if which not in taken and all(have[s] + counts[which][s] <= limits[s] for s in (0, 1)):
            taken.add(which)
            have[:] = [have[s] + counts[which][s] for s in (0, 1)]

    for which in range(len(wholes)):
        take(which, targets)
    # A side that has nothing yet, because all that belongs together is larger than the part to hold out:
    # the smallest that leaves something to train on.
    for side in (0, 1):
        for which in sorted(range(len(wholes)), key=lambda w: counts[w]):
            if not have[side] and counts[which][side]:
                take(which, [n - 1 for n in totals])
    if 0 in have:
        return None
    chosen: tuple[set[int], set[int]] = (set(), set())
    for which in taken:
        for side, i in wholes[which][1]:
            chosen[side].add(i)
    return chosen


def _wholes(positive: Sequence[Text], negative: Sequence[Text], units: Sequence[int]) -> dict[str, list[Entry]]:
    """The entries that must stay together: those with the same text, and the others of their units.

    Each whole goes by the least of its texts, so that its name does not depend on the order of the set.
    """
    keys = [[same_text(text) for text in side] for side in (positive, negative)]
    parent = {key: key for side in keys for key in side}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first: dict[int, str] = {}
    for unit, key in zip(units, [*keys[0], *keys[1]], strict=True):
        low, high = sorted((root(first.setdefault(unit, key)), root(key)))
        parent[high] = low
    wholes: dict[str, list[Entry]] = defaultdict(list)
    for side, texts in enumerate(keys):
        for i, key in enumerate(texts):
            wholes[root(key)].append((side, i))
    return wholes
