"""Packing: texts that begin alike share one row, so that no token is computed twice.

A row holds a *tree* of texts: the tokens they have in common once, then each text's own. A mask lets every token
see its own beginnings only, and position ids count along each text, so every text sees exactly what it sees alone.
Compared with reusing a key-value cache this is one forward pass instead of two, with no second pass over the
weights for the few tokens in which a pair differs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from steerfn.reading._positions import Read, common_prefix


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a batch: a text, or a tree of texts that begin alike.

    Attributes:
        ids: token ids.
        depth: the position of each token in its text.
        paths: for each text in it, its number and the places of its tokens in the row, from its first token on.
    """

    ids: tuple[int, ...]
    depth: tuple[int, ...]
    paths: tuple[tuple[int, np.ndarray], ...]

    @property
    def shared(self) -> bool:
        """Whether it holds more than one text."""
        return len(self.paths) > 1

    def visible(self) -> np.ndarray:
        """Which token sees which, `[len(ids), len(ids)]`."""
        seen = np.zeros((len(self.ids), len(self.ids)), dtype=bool)
        for _, path in self.paths:
            seen[np.ix_(path, path)] |= np.tri(len(path), dtype=bool)
        return seen


def alone(number: int, ids: Sequence[int]) -> Row:
    """A row of one text."""
    path = np.arange(len(ids))
    return Row(tuple(ids), tuple(range(len(ids))), ((number, path),))


def pack(
    reads: Sequence[Read],
    *,
    whole: bool,
    share: bool,
    width: int,
    longest: int | None = None,
    most: int | None = None,
) -> list[Row]:
    """Rows that hold every text once, the longest first.

    A text joins the row of the texts before it (in the order of their token ids) where that saves work: joining
    saves the common tokens, and costs attention to the row's other texts, which is masked but computed. A
    pair of tokens costs `1 / (6 width)` of what the rest of a block costs for a token.

    Args:
        reads: what is read of each text.
        whole: keep the tokens after the last one that is read.
        share: whether texts may share a row.
        width: the model's `d_model`.
        longest: texts longer than this do not share (the model's attention window).
        most: texts in one row at most.
    """
    texts = [read.ids if whole else read.needed for read in reads]
    if not share:
        return _sorted([alone(i, ids) for i, ids in enumerate(texts)])
    rows: list[Row] = []
    tree: _Tree | None = None
    for i in sorted(range(len(texts)), key=texts.__getitem__):
        ids = texts[i]
        fits = longest is None or len(ids) <= longest
        if tree is not None and fits and len(tree.paths) != most and tree.worth(ids, width):
            tree.add(i, ids)
            continue
        if tree is not None:
            rows.append(tree.row())
        tree = _Tree(i, ids) if fits else None
        if not fits:
            rows.append(alone(i, ids))
    return _sorted([*rows, tree.row()] if tree is not None else rows)


def _sorted(rows: list[Row]) -> list[Row]:
    """Rows of one text first, then the shared ones; within each the longest first, so that little is padded."""
    return sorted(rows, key=lambda row: (row.shared, -len(row.ids), row.paths[0][0]))


class _Tree:
    """A row under construction. Texts come in the order of their ids, so the last one shares the most."""

    def __init__(self, number: int, ids: tuple[int, ...]) -> None:
        self.ids, self.depth = list(ids), list(range(len(ids)))
        self.last, self.path = ids, np.arange(len(ids))
        self.paths = [(number, self.path)]

    def worth(self, ids: tuple[int, ...], width: int) -> bool:
        """Whether joining costs less than standing alone."""
        common = common_prefix(self.last, ids)
        new, row = len(ids) - common, len(self.ids)
        joined = new + ((row + new) ** 2 - row**2) / (6 * width)
        return common > 0 and joined < len(ids) + len(ids) ** 2 / (6 * width)

    def add(self, number: int, ids: tuple[int, ...]) -> None:
        common = common_prefix(self.last, ids)
        own = np.arange(len(self.ids), len(self.ids) + len(ids) - common)
        self.ids.extend(ids[common:])
        self.depth.extend(range(common, len(ids)))
        self.last, self.path = ids, np.concatenate([self.path[:common], own])
        self.paths.append((number, self.path))

    def row(self) -> Row:
        """The finished row."""
        return Row(tuple(self.ids), tuple(self.depth), tuple(self.paths))
