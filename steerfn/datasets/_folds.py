"""Folds of cross-validation: what belongs together stays together, and every fold has its share of what is read.

Published questions are balanced by their answers: "Yes" is the positive answer as often as the negative one. A
direction that is fitted to folds in which it was positive once too often points towards "Yes", and the held-out fold
is the one in which it was negative once too often. Folds at random so turn a good direction against the texts that
judge it; with one pair a fold it is always wrong. So each fold gets every answer as often on either side as its share.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn.run import Read, common_prefix
from steerfn.values import DataError, number_groups

COMMON = 0.1
"""Tokens that decide at least this part of the texts are shared out over the folds; rare ones are the texts' own."""
TURNED = 0.25
"""Where the tokens alone can move the AUC by more than this, it says nothing."""
TOKEN = 3.0
"""What a token that is lacking weighs against the evenness of folds, whose sizes are counted in shares of a fold."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of two sides and how they are grouped and paired, without activations; the positives first.

    Attributes:
        units: the unit that each text belongs to (a pair, a group, or itself), numbered from 0.
        tokens: of each text, the tokens that may decide what is read, see `deciding_tokens`.
        paired: whether text `i` of either side belongs to the same unit because the two are a pair.
        positive: how many positives.
    """

    units: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    paired: bool
    positive: int

    @property
    def labels(self) -> np.ndarray:
        """1 for the positives, 0 for the negatives."""
        return (np.arange(len(self.units)) < self.positive).astype(int)

    @property
    def sides(self) -> tuple[int, int]:
        """How many units have a positive text, and how many a negative one."""
        units = np.array(self.units)
        return len(set(units[: self.positive])), len(set(units[self.positive :]))


def deciding_tokens(reads: Sequence[Read], pairs: int | None) -> tuple[tuple[int, ...], ...]:
    """The tokens that may decide what is read of each text: its answer, where texts are questions with answers.

    That is the token that is read or, where all texts end alike up to there (the bracket of "(A)", a chat template's
    end of turn), the last one before; and of pairs the first in which the two texts differ.

    Args:
        pairs: where the first `pairs` texts and the next are pairs, how many.
    """
    ends = [read.needed[::-1] for read in reads]
    alike = min(common_prefix(ends[0], end) for end in ends)
    tokens = [(end[min(alike, len(end) - 1)],) for end in ends]
    if pairs is None:
        return tuple(tokens)
    first = []
    for one, other in zip(reads[:pairs], reads[pairs:], strict=True):
        at = common_prefix(one.ids, other.ids)
        first.append((one.ids[min(at, len(one.ids) - 1)], other.ids[min(at, len(other.ids) - 1)]))
    differing = [pair[side] for side in (0, 1) for pair in first]
    return tuple((*known, token) for known, token in zip(tokens, differing, strict=True))


def describe_texts(
    counts: tuple[int, int], tokens: Any = None, groups: Any = None, paired: bool | None = None
) -> Texts:
    """The units of two sides of texts: pairs where there are as many on either side, else texts, or else the groups.

    Args:
        counts: positive and negative texts.
        tokens: the token that is read of each text, the positives first, or None.
        groups: one label for each pair, or for each text, the positives first.
        paired: whether text `i` of either side belong together; by default where the counts are equal.

    Raises:
        DataError: groups of another length, or with a missing label.
    """
    total = sum(counts)
    equal = counts[0] == counts[1] if paired is None else paired
    tokens = tuple(each if isinstance(each, tuple) else (each,) for each in tokens or [()] * total)
    if groups is None:
        units = [*range(counts[0])] * 2 if equal else [*range(total)]
        return Texts(tuple(units), tokens, equal, counts[0])
    size = len(groups) if hasattr(groups, "__len__") else -1
    if equal and size == counts[0]:
        return Texts(tuple(number_groups(groups, size, "pairs") * 2), tokens, True, counts[0])
    rows = f"texts ({counts[0]} positive, then {counts[1]} negative)"
    if equal and size != total:
        raise DataError(
            f"groups has {size} labels for {counts[0]} pairs; pass one for each pair, or one for each of the {total} "
            "texts, the positives first."
        )
    return Texts(tuple(number_groups(groups, total, rows)), tokens, False, counts[0])


def divide(texts: Texts, folds: int, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """The fold of each text, numbered from 0; fewer folds where balance asks for it.

    Units come in random order, large ones first, and each goes where what it brings is lacking most: to the fold
    whose sums (of each token on the positive side minus the negative one, then of texts by side) lie least along its
    own.

    Args:
        seed: of the order.
        labels: in place of the texts' own.
    """
    labels = texts.labels if labels is None else labels
    units = np.array(texts.units)
    count = int(units.max()) + 1
    tokens, sizes = net_tokens(texts, labels), np.zeros((count, 2))
    np.add.at(sizes, (units, labels), 1.0)
    sizes /= np.maximum(sizes.sum(0), 1) / folds
    features = np.concatenate([TOKEN * tokens, sizes], axis=1)
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(-np.bincount(units)[order], kind="stable")]
    sums, chosen = np.zeros((folds, features.shape[1])), np.zeros(count, dtype=int)
    for unit in order:
        chosen[unit] = np.argmin(sums @ features[unit])
        sums[chosen[unit]] += features[unit]
    return np.unique(chosen, return_inverse=True)[1][units]


def net_tokens(texts: Texts, labels: np.ndarray) -> np.ndarray:
    """How often each unit reads each common token on the positive side, minus on the negative, `[units, tokens]`."""
    units, tokens = np.array(texts.units), np.array(texts.tokens).reshape(len(texts.units), -1)
    columns = []
    for each in tokens.T:
        kinds, often = np.unique(each, return_counts=True)
        for kind in kinds[often >= max(2, COMMON * len(each))]:
            columns.append(np.bincount(units, (2.0 * labels - 1) * (each == kind)))
    return np.stack(columns, axis=1) if columns else np.zeros((int(units.max()) + 1, 0))


def reason_against(texts: Texts, fold: np.ndarray) -> str | None:
    """Why cross-validation with some folds tells nothing, or None where it does."""
    labels, folds = texts.labels, int(fold.max()) + 1
    if folds < 2:
        if min(texts.sides) < 2:
            return "one text or group on a side leaves nothing to hold out"
        return "the answers that are read cannot be shared out evenly: too few texts have each of them on either side"
    for one in range(folds):
        if len(set(labels[fold != one])) < 2:
            return "without one of the folds a side is empty: too few groups hold it"
    net = net_tokens(texts, labels)
    by_fold = np.stack([net[np.unique(np.array(texts.units)[fold == one])].sum(0) for one in range(folds)])
    turned = by_fold * (by_fold.sum(0) - by_fold) < 0  # the rest of the texts point the other way
    if net.shape[1] and (np.abs(by_fold) * turned).max(1).sum() / (len(fold) / 2) / 2 > TURNED:
        return (
            "the answers that are read cannot be shared out evenly over the folds, so each direction is turned against "
            "the texts that judge it: too few texts have each of them on either side"
        )
    return None
