"""Packing: texts that begin alike share one row, so that no token is computed twice and little is padded.

A *tree* of texts holds the tokens they have in common once, then each text's own; a row holds one tree or several. A
mask lets every token see its own beginnings only, and position ids count along each text, so every text sees exactly
what it sees alone. Compared with reusing a key-value cache this is one forward pass instead of two, with no
second pass over the weights for the few tokens in which a pair differs.

A pair of tokens costs `1 / (6 d_model)` of what the rest of a block costs for a token: attention to a row's other
texts is masked but computed, so a row must not grow for ever.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

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


def additive(seen: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mask `[rows, 1, seq, seq]` that is added to attention scores, of which token sees which."""
    hidden = torch.from_numpy(~seen).to(device)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min).unsqueeze(1)


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
    """Rows that hold every text once: those of one text first, and of each kind the longest first.

    Args:
        reads: what is read of each text.
        whole: keep the tokens after the last one that is read.
        share: whether texts may share a row.
        width: the model's `d_model`.
        longest: texts longer than this do not share (the model's attention window).
        most: texts in one row at most.
    """
    texts = [read.ids if whole else read.needed for read in reads]
    may = [i for i, ids in enumerate(texts) if share and (longest is None or len(ids) <= longest)]
    apart = [alone(i, ids) for i, ids in enumerate(texts) if not share or (longest is not None and len(ids) > longest)]
    rows = filled(trees({i: texts[i] for i in may}, width, most), width, most)
    return _longest_first([*apart, *rows])


def _longest_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.shared, -len(row.ids), row.paths[0][0]))


def trees(texts: Mapping[int, tuple[int, ...]], width: int, most: int | None) -> list[Row]:
    """Texts joined where that saves work: the tokens in common against the attention to the row's other texts."""
    rows: list[Row] = []
    tree: _Tree | None = None
    for i in sorted(texts, key=texts.__getitem__):
        ids = texts[i]
        if tree is not None and len(tree.paths) != most and tree.worth(ids, width):
            tree.add(i, ids)
            continue
        if tree is not None:
            rows.append(tree.row())
        tree = _Tree(i, ids)
    return rows if tree is None else [*rows, tree.row()]


OPEN = 64
"""Rows that may still be filled up while packing."""


def filled(rows: list[Row], width: int, most: int | None) -> list[Row]:
    """Short rows put behind others where they would be padded: into what the longest leaves, first fit.

    Rows are filled up to the longest, within `width / 4` and `width / 2`, where attention costs 4 to 8 % of a token.
    """
    open_: list[tuple[int, list[Row]]] = []  # room that is left, and what is in it
    done: list[list[Row]] = []
    longest = max((len(row.ids) for row in rows), default=0)
    size = min(max(longest, width // 4), width // 2)
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        count = len(row.paths)
        for i, (room, held) in enumerate(open_):
            if len(row.ids) <= room and (most is None or count + sum(len(r.paths) for r in held) <= most):
                open_[i] = room - len(row.ids), [*held, row]
                break
        else:
            open_.append((max(size - len(row.ids), 0), [row]))
            if len(open_) > OPEN:
                done.append(open_.pop(0)[1])
    return [_side_by_side(held) for held in [*done, *(held for _, held in open_)]]


def _side_by_side(rows: list[Row]) -> Row:
    """One row out of several, each seeing itself only."""
    starts = np.cumsum([0, *(len(row.ids) for row in rows)])
    return Row(
        tuple(token for row in rows for token in row.ids),
        tuple(depth for row in rows for depth in row.depth),
        tuple((i, path + start) for row, start in zip(rows, starts[:-1], strict=True) for i, path in row.paths),
    )


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
