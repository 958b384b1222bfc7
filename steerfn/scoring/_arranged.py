"""Trees in the rows of one batch: the part that no operator touches once, the rest once for every operator.

    prefix, to the right | branch | branch | ...

A *branch* is what one operator may touch of a tree. Branches of a row see its prefix and themselves. Prefixes end in
one column, so that equal trees are scored in equal columns and the LM head runs on few.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steerfn.operators import Tokens
from steerfn.reading._packing import additive
from steerfn.scoring._tree import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Arranged:
    """A batch.

    Attributes:
        ids: token ids, `[rows, columns]`.
        depth: the position of each token in its text.
        real: False at padding.
        seen: which token sees which, `[rows, columns, columns]`; None where the rows are plain texts.
        index: flat places of the tokens of each branch, `[branches, longest]`; None where the branches are the rows.
        tokens: the tokens of the branches, as operators see them.
        columns: where the LM head must run, ascending.
        asked: (row, index into columns, token) of everything that is scored, `[3, scored]`.
        owner: which of all continuations of all branches each belongs to.
        prompts: tokens of the prompt of each row.
    """

    ids: np.ndarray
    depth: np.ndarray
    real: np.ndarray
    seen: np.ndarray | None
    index: np.ndarray | None
    tokens: Tokens
    columns: np.ndarray
    asked: np.ndarray
    owner: np.ndarray
    prompts: list[int]

    @property
    def matter(self) -> np.ndarray:
        """The flat places of the tokens that predict something that is scored, ascending."""
        return np.unique(self.asked[0] * self.ids.shape[1] + self.columns[self.asked[1]])


def width(tree: Tree, first: int, count: int) -> int:
    """Columns of a row with `count` branches of a tree from its token `first` on."""
    return first + count * (len(tree.ids) - first)


def arranged(rows: Sequence[tuple[Tree, int, int]]) -> Arranged:
    """A batch of rows, each a tree, the first token of its branches, and how many of them."""
    prefix = max(first for _, first, _ in rows)
    size = max(prefix - first + width(tree, first, count) for tree, first, count in rows)
    plain = all(first == 0 and count == 1 and tree.is_chain for tree, first, count in rows)
    shape = (len(rows), size)
    ids, depth, real = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    seen = None if plain else np.zeros((*shape, size), bool)
    branches, asked, owner, owners = [], [], [], 0
    for r, (tree, first, count) in enumerate(rows):
        own = len(tree.ids) - first
        before = np.arange(prefix - first, prefix)
        ids[r, before], depth[r, before], real[r, before] = tree.ids[:first], tree.depth[:first], True
        if seen is not None:
            seen[r][np.ix_(before, before)] = tree.seen[:first, :first]
        for b in range(count):
            after = np.arange(prefix + b * own, prefix + (b + 1) * own)
            ids[r, after], depth[r, after], real[r, after] = tree.ids[first:], tree.depth[first:], True
            if seen is not None:
                seen[r][np.ix_(after, before)] = tree.seen[first:, :first]
                seen[r][np.ix_(after, after)] = tree.seen[first:, first:]
            branches.append((r * size + after, tree.depth[first:], tree.prompt))
            for nodes, tokens in tree.asked:
                asked.append(np.stack([np.full(len(nodes), r), after[nodes - first], tokens]))
                owner.append(np.full(len(nodes), owners))
                owners += 1
    if seen is not None:  # padding sees itself, so that no softmax is empty
        seen |= np.eye(size, dtype=bool) & ~real[:, :, None]
    asked = np.concatenate(asked, axis=1)
    columns_asked, asked[1] = np.unique(asked[1], return_inverse=True)
    whole = all(first == 0 and count == 1 for _, first, count in rows)
    index, tokens = (None, _tokens(depth, real, rows)) if whole else _branches(branches)
    return Arranged(
        ids,
        depth,
        real,
        seen,
        index,
        tokens,
        columns_asked,
        asked,
        np.concatenate(owner),
        [t.prompt for t, _, _ in rows],
    )


def _tokens(depth: np.ndarray, real: np.ndarray, rows: Sequence[tuple[Tree, int, int]]) -> Tokens:
    prompts = torch.tensor([[tree.prompt] for tree, _, _ in rows])
    return Tokens(torch.from_numpy(depth), prompts, None if real.all() else torch.from_numpy(real))


def _branches(branches: list[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, Tokens]:
    """The places and the tokens of branches, padded to the longest."""
    shape = (len(branches), max(len(places) for places, _, _ in branches))
    index, depth, real = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for i, (places, depths, _) in enumerate(branches):
        index[i, : len(places)], depth[i, : len(places)], real[i, : len(places)] = places, depths, True
    prompts = torch.tensor([[prompt] for _, _, prompt in branches])
    return index, Tokens(torch.from_numpy(depth), prompts, None if real.all() else torch.from_numpy(real))


def inputs(batch: Arranged, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """What the model is given: the ids and a mask, and positions where the rows are trees."""
    given = {"input_ids": torch.from_numpy(batch.ids).to(device)}
    if batch.seen is None:
        return given | {"attention_mask": torch.from_numpy(batch.real.astype(np.int64)).to(device)}
    mask = additive(batch.seen, dtype, device)
    return given | {"attention_mask": mask, "position_ids": torch.from_numpy(batch.depth).to(device)}
