"""Packing: texts that begin alike share one row, so that no token is computed twice and little is padded.

A *tree* of texts holds the tokens they have in common once, then each text's own; a row holds one tree or several. A
mask lets every token see its own beginnings only, and position ids count along each text, so every text sees exactly
what it sees alone. Compared with reusing a key-value cache this is one forward pass instead of two, with no
second pass over the weights for the few tokens in which a pair differs.

A pair of tokens costs `1 / (6 d_model)` of what the rest of a block costs for a token: attention to a row's other
texts is masked but computed, so a row must not grow for ever.

An `Item`, a prompt and the continuations that compete after it, is a tree too. Under many operators the part that none
of them touches stands once, and the rest once for every operator:

    prefix, to the right | branch | branch | ...

A *branch* is what one operator may touch of a tree. Branches of a row see its prefix and themselves. Prefixes end in
one column, so that equal trees are scored in equal columns and the LM head runs on few.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn.operators import RowIds, Tokens
from steerfn.run._chat_template import Chat, checked_chat
from steerfn.run._positions import Read
from steerfn.run._text import as_texts, common_prefix, encode_continuations
from steerfn.values import DataError


@dataclasses.dataclass(frozen=True)
class PackedRow:
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
            new = np.flatnonzero(~seen[path, path])  # the tokens that no text before it has
            seen[np.ix_(path[new], path)] = np.arange(len(path)) <= new[:, None]
        return seen


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The tokens of a batch, `[rows, columns]`.

    Attributes:
        ids: token ids.
        depth: the position of each token in its text.
        real: False at padding.
        seen: which token sees which, `[rows, columns, columns]`; None where the rows are plain texts.
    """

    ids: np.ndarray
    depth: np.ndarray
    real: np.ndarray
    seen: np.ndarray | None

    @classmethod
    def empty(cls, rows: int, columns: int, *, plain: bool) -> "Grid":
        """All padding."""
        ids, depth = np.zeros((2, rows, columns), np.int64)
        seen = None if plain else np.zeros((rows, columns, columns), bool)
        return cls(ids, depth, np.zeros((rows, columns), bool), seen)

    def put(self, row: int, columns: Any, ids: Any, depth: Any) -> None:
        """Place tokens."""
        self.ids[row, columns], self.depth[row, columns], self.real[row, columns] = ids, depth, True

    def inputs(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """The inputs of a model: the ids and a mask, and positions where the rows are trees."""
        given = {"input_ids": torch.from_numpy(self.ids).to(device)}
        if self.seen is None:
            return given | {"attention_mask": torch.from_numpy(self.real.astype(np.int64)).to(device)}
        # Padding sees itself, so that no softmax is empty.
        seen = self.seen | (np.eye(self.ids.shape[1], dtype=bool) & ~self.real[:, :, None])
        hidden = torch.from_numpy(~seen).to(device)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)  # added to the attention scores
        mask = mask.masked_fill_(hidden, torch.finfo(dtype).min).unsqueeze(1)
        return given | {"attention_mask": mask, "position_ids": torch.from_numpy(self.depth).to(device)}


def pack_rows(rows: Sequence[PackedRow]) -> Grid:
    """A batch of rows, padded on the right, where no causal model looks."""
    grid = Grid.empty(len(rows), max(len(row.ids) for row in rows), plain=not any(row.shared for row in rows))
    for i, row in enumerate(rows):
        own = slice(len(row.ids))
        grid.put(i, own, row.ids, row.depth)
        if grid.seen is not None:
            grid.seen[i, own, own] = row.visible()
    return grid


def alone(number: int, ids: Sequence[int]) -> PackedRow:
    """A row of one text."""
    path = np.arange(len(ids))
    return PackedRow(tuple(ids), tuple(range(len(ids))), ((number, path),))


def pack(
    reads: Sequence[Read],
    *,
    whole: bool,
    share: bool,
    width: int,
    longest: int | None = None,
    most: int | None = None,
) -> list[PackedRow]:
    """Rows that hold every text once: those of one text first, and of each kind the longest first.

    Args:
        whole: keep the tokens after the last one that is read.
        share: whether texts may share a row.
        width: the model's `d_model`.
        longest: texts longer than this do not share (the model's attention window).
        most: texts in one row at most.
    """
    texts = [read.ids if whole else read.needed for read in reads]
    fits = [share and (longest is None or len(ids) <= longest) for ids in texts]
    apart = [alone(i, texts[i]) for i, fit in enumerate(fits) if not fit]
    rows = fill_rows(trees({i: texts[i] for i, fit in enumerate(fits) if fit}, width, most), width, most)
    return sorted([*apart, *rows], key=lambda row: (row.shared, -len(row.ids), row.paths[0][0]))


def trees(texts: Mapping[int, tuple[int, ...]], width: int, most: int | None) -> list[PackedRow]:
    """Texts joined where that saves work: the tokens in common against the attention to the row's other texts."""
    grown: list[_Tree] = []
    for i in sorted(texts, key=texts.__getitem__):
        if not grown or len(grown[-1].paths) == most or not grown[-1].worth(texts[i], width):
            grown.append(_Tree())
        grown[-1].add(i, texts[i])
    return [tree.row() for tree in grown]


OPEN = 64
"""Rows that may still be filled up while packing."""


def fill_rows(rows: list[PackedRow], width: int, most: int | None) -> list[PackedRow]:
    """Short rows put behind others where they would be padded: into what the longest leaves, first fit.

    Rows are filled up to the longest, within `width / 4` and `width / 2`, where attention costs 4 to 8 % of a token.
    """
    open_: list[tuple[int, list[PackedRow]]] = []  # room that is left, and what is in it
    done: list[list[PackedRow]] = []
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


def _side_by_side(rows: list[PackedRow]) -> PackedRow:
    """One row out of several, each seeing itself only."""
    starts = np.cumsum([0, *(len(row.ids) for row in rows)])
    return PackedRow(
        tuple(token for row in rows for token in row.ids),
        tuple(depth for row in rows for depth in row.depth),
        tuple((i, path + start) for row, start in zip(rows, starts[:-1], strict=True) for i, path in row.paths),
    )


class _Tree:
    """A row under construction: a text takes the tokens that it has in common with the beginning of another."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depth: list[int] = []
        self.paths: list[tuple[int, np.ndarray]] = []
        self._places: dict[tuple[int, int], int] = {}  # of a token, by the place of the one before it
        self._last: tuple[int, ...] = ()

    def worth(self, ids: tuple[int, ...], width: int) -> bool:
        """Whether joining costs less than standing alone, for texts in the order of their ids."""
        common = common_prefix(self._last, ids)  # of all texts in the tree, the last one shares the most
        new, row = len(ids) - common, len(self.ids)
        joined = new + ((row + new) ** 2 - row**2) / (6 * width)
        return common > 0 and joined < len(ids) + len(ids) ** 2 / (6 * width)

    def add(self, number: int, ids: tuple[int, ...]) -> None:
        path, place = [], -1
        for depth, token in enumerate(ids):
            before, new = place, len(self.ids)
            place = self._places.setdefault((before, token), new)
            if place == new:
                self.ids.append(token)
                self.depth.append(depth)
            path.append(place)
        self.paths.append((number, np.array(path)))
        self._last = ids

    def row(self) -> PackedRow:
        """The finished row."""
        return PackedRow(tuple(self.ids), tuple(self.depth), tuple(self.paths))


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt and its continuations.

    Attributes:
        prompt: token ids up to where the first of the continuations begins to differ from the prompt alone.
        continuations: token ids of each, not empty.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


def items_of(tokenizer: Any, prompts: Any, continuations: Any, chat: Chat) -> list[Item]:
    """Items from texts.

    Args:
        continuations: a list of texts for every prompt, or a list of such lists, one for each prompt.

    Raises:
        DataError: no prompts or continuations, an empty one, another number of lists than prompts, or a
            continuation whose tokens cannot be told from the prompt's.
    """
    checked_chat(chat)
    texts, items = as_texts(prompts, "prompts"), []
    for each in encode_continuations(tokenizer, texts, by_prompt(continuations, len(texts)), chat, "prompts"):
        start = min(start for _, start in each)  # the earliest continuation ends the prompt
        items.append(Item(tuple(each[0][0][:start]), tuple(tuple(ids[start:]) for ids, _ in each)))
    return items


def by_prompt(continuations: Any, prompts: int) -> list[list[str]]:
    """The list of continuations of each prompt.

    Raises:
        DataError: no list, an empty one, or another number of lists than prompts.
    """
    if isinstance(continuations, str) or not isinstance(continuations, Sequence) or not len(continuations):
        raise DataError(
            f"continuations is a list of texts for every prompt, or one list for each, not {continuations!r:.80}."
        )
    if all(isinstance(each, str) for each in continuations):
        return [list(continuations)] * prompts
    if len(continuations) != prompts:
        raise DataError(
            f"There are {prompts} prompts but {len(continuations)} lists of continuations; pass one for each."
        )
    for i, each in enumerate(continuations):
        if isinstance(each, str) or not isinstance(each, Sequence) or not len(each):
            raise DataError(f"continuations[{i}] is {each!r:.80}; pass a list of texts that is not empty.")
    return [list(each) for each in continuations]


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """An item's tokens as a tree.

    A continuation's last token is predicted and never an input, so continuations of one token add nothing.

    Attributes:
        ids: token ids, the prompt's first, `[n]`.
        depth: the position of each in its text, `[n]`.
        seen: which token sees which, `[n, n]`.
        prompt: tokens of the prompt.
        asked: for each continuation the tokens that predict it, and the tokens they should predict.
    """

    ids: np.ndarray
    depth: np.ndarray
    seen: np.ndarray
    prompt: int
    asked: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def is_chain(self) -> bool:
        """Whether it holds one text only, so that every token sees all before it."""
        return len(self.ids) == int(self.depth[-1]) + 1


def tree_of(item: Item) -> Tree:
    """The tree of an item."""
    grown = _Tree()
    for k, continuation in enumerate(item.continuations):
        grown.add(k, (*item.prompt, *continuation[:-1]))
    row, last = grown.row(), len(item.prompt) - 1
    paths = (path[last:] for _, path in row.paths)
    asked = tuple((path, np.array(each)) for path, each in zip(paths, item.continuations, strict=True))
    return Tree(np.array(row.ids), np.array(row.depth), row.visible(), len(item.prompt), asked)


@dataclasses.dataclass(frozen=True, eq=False)
class PackedBranches:
    """A batch.

    Attributes:
        grid: its tokens.
        index: flat places of the tokens of each branch, `[branches, longest]`; None where the branches are the rows.
        tokens: the tokens of the branches, as operators see them.
        columns: where the LM head must run, ascending.
        asked: (row, index into columns, token) of everything that is scored, `[3, scored]`.
        owner: which of all continuations of all branches each belongs to.
        prompts: tokens of the prompt of each row.
    """

    grid: Grid
    index: np.ndarray | None
    tokens: Tokens
    columns: np.ndarray
    asked: np.ndarray
    owner: np.ndarray
    prompts: list[int]

    @property
    def matter(self) -> np.ndarray:
        """The flat places of the tokens that predict something that is scored, ascending."""
        return np.unique(self.asked[0] * self.grid.ids.shape[1] + self.columns[self.asked[1]])


def width(tree: Tree, first: int, count: int) -> int:
    """Columns of a row with `count` branches of a tree from its token `first` on."""
    return first + count * (len(tree.ids) - first)


def pack_branches(rows: Sequence[tuple[Tree, int, int]]) -> PackedBranches:
    """A batch of rows, each a tree, the first token of its branches, and how many of them."""
    prefix = max(first for _, first, _ in rows)
    size = max(prefix - first + width(tree, first, count) for tree, first, count in rows)
    plain = all(first == 0 and count == 1 and tree.is_chain for tree, first, count in rows)
    grid = Grid.empty(len(rows), size, plain=plain)
    branches, asked, owner, owners = [], [], [], 0
    for r, (tree, first, count) in enumerate(rows):
        own = len(tree.ids) - first
        before = np.arange(prefix - first, prefix)
        grid.put(r, before, tree.ids[:first], tree.depth[:first])
        if grid.seen is not None:
            grid.seen[r][np.ix_(before, before)] = tree.seen[:first, :first]
        for b in range(count):
            after = np.arange(prefix + b * own, prefix + (b + 1) * own)
            grid.put(r, after, tree.ids[first:], tree.depth[first:])
            if grid.seen is not None:
                grid.seen[r][np.ix_(after, before)] = tree.seen[first:, :first]
                grid.seen[r][np.ix_(after, after)] = tree.seen[first:, first:]
            branches.append((r * size + after, tree.depth[first:], tree.prompt))
            for nodes, tokens in tree.asked:
                asked.append(np.stack([np.full(len(nodes), r), after[nodes - first], tokens]))
                owner.append(np.full(len(nodes), owners))
                owners += 1
    asked = np.concatenate(asked, axis=1)
    columns_asked, asked[1] = np.unique(asked[1], return_inverse=True)
    prompts = [tree.prompt for tree, _, _ in rows]
    if all(first == 0 and count == 1 for _, first, count in rows):  # the branches are the rows
        index, tokens = None, _token_positions(grid.ids, grid.depth, grid.real, prompts, whole=True)
    else:
        index, tokens = _branches(grid.ids, branches)
    return PackedBranches(grid, index, tokens, columns_asked, asked, np.concatenate(owner), prompts)


def _token_positions(
    ids: np.ndarray, depth: np.ndarray, real: np.ndarray, prompts: list[int], whole: bool = False
) -> Tokens:
    """The tokens of rows; `whole` says that those that are one text begin with its first token."""
    index, is_real = torch.from_numpy(depth), None if real.all() else torch.from_numpy(real)
    token_ids = torch.from_numpy(ids)
    row = RowIds.of(token_ids, is_real) if whole else None
    return Tokens(index, torch.tensor(prompts).unsqueeze(1), is_real, ids=token_ids, row=row)


def _branches(ids: np.ndarray, branches: list[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, Tokens]:
    """The places and the tokens of branches, padded to the longest."""
    shape = (len(branches), max(len(places) for places, _, _ in branches))
    index, depth, real = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for i, (places, depths, _) in enumerate(branches):
        index[i, : len(places)], depth[i, : len(places)], real[i, : len(places)] = places, depths, True
    return index, _token_positions(ids.reshape(-1)[index], depth, real, [prompt for _, _, prompt in branches])
