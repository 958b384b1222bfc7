"""The tokens that a model must see to score an item: the prompt once, and the continuations' common beginnings once."""

import dataclasses

import numpy as np

from steerfn.scoring._item import Item


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
    ids, parents = list(item.prompt), list(range(-1, len(item.prompt) - 1))
    known: dict[tuple[int, int], int] = {}
    asked = []
    for continuation in item.continuations:
        node, nodes = len(item.prompt) - 1, []
        for token in continuation:
            nodes.append(node)
            if len(nodes) == len(continuation):
                break
            if (node, token) not in known:
                known[node, token] = len(ids)
                ids.append(token)
                parents.append(node)
            node = known[node, token]
        asked.append((np.array(nodes), np.array(continuation)))
    seen = np.eye(len(ids), dtype=bool)
    depth = np.zeros(len(ids), dtype=np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
            depth[node] = depth[parent] + 1
    return Tree(np.array(ids), depth, seen, len(item.prompt), tuple(asked))
