"""Which examples to hold out, so that no text is on both sides of a split."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from steerfn._text import Text
from steerfn.discover._lint import same_text

Entry = tuple[int, int]
"""(0 for positive or 1 for negative, index)."""


def held_out_indices(
    positive: Sequence[Text], negative: Sequence[Text], paired: bool, held_out: float, seed: int
) -> tuple[set[int], set[int]] | None:
    """The indices to hold out of each side; None where no division leaves something on both sides of it."""
    wholes = sorted(_wholes(positive, negative, paired).items(), key=lambda whole: _order(whole[0], seed))
    counts = [_count(entries) for _, entries in wholes]
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


def _wholes(positive: Sequence[Text], negative: Sequence[Text], paired: bool) -> dict[str, list[Entry]]:
    """What must stay together: entries with the same text, and with them the other halves of their pairs.

    Each whole goes by the least of its texts, so that its name does not depend on the order of the set.
    """
    keys = [[same_text(text) for text in side] for side in (positive, negative)]
    parent = {key: key for side in keys for key in side}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    if paired:
        for left, right in zip(*keys, strict=True):
            low, high = sorted((root(left), root(right)))
            parent[high] = low
    found: dict[str, list[Entry]] = defaultdict(list)
    for side, texts in enumerate(keys):
        for i, key in enumerate(texts):
            found[root(key)].append((side, i))
    return found


def _count(entries: Sequence[Entry]) -> tuple[int, int]:
    negatives = sum(side for side, _ in entries)
    return len(entries) - negatives, negatives


def _order(key: str, seed: int) -> bytes:
    # A hash and not `random`: the same on every machine and version of Python, and no matter the order of the set.
    return hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).digest()
