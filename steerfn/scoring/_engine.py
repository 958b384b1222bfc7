"""The scoring engine: many operators on the same items, with nothing computed twice that they share.

Three ways, chosen for each operator and item by cost:

- *branches*: an operator that leaves the prompt's beginning alone shares one row with the others, in which that
  beginning stands once (`_arranged`);
- *rows on a trunk*: an operator that touches the prompt gets a row of its own, in which the blocks below its first
  site are not run again (`_trunk`);
- *plain*: a row for each continuation and operator, where the model takes no 4-D mask or a steering is open.
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from steerfn._blocks import unwrapped
from steerfn._forward import Entry, Selections
from steerfn._layout import layout
from steerfn._site import resid_post
from steerfn._steer import prepared, refuse_open_rows
from steerfn._substitute import device_of, substitutions_of, walk
from steerfn._text import input_device
from steerfn.operators import Operator, Tokens, identity, rows
from steerfn.operators._prompt_condition import asks_prompts
from steerfn.operators._rows import refuse_rows
from steerfn.reading._abilities import window
from steerfn.reading._budget import TOKENS, TOKENS_ELSEWHERE, limit_of
from steerfn.reading._engine import able, is_steered
from steerfn.reading._passing import passed
from steerfn.scoring._arranged import Arranged, arranged, inputs, width
from steerfn.scoring._item import Item
from steerfn.scoring._placed import Placed
from steerfn.scoring._tree import Tree, tree_of
from steerfn.scoring._trunk import Noting, Repeating, trunk

LOGITS = 2**26
"""Logits of one pass at most: 256 MiB in float32."""

Work = tuple[int, tuple[int, ...], int]
"""A row: an item, the operators that have a branch in it, and the first token of the branches."""


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The log-probabilities of some items.

    Attributes:
        items: which.
        log_probs: for each of them `[operators, continuations]`, float64.
    """

    items: list[int]
    log_probs: list[np.ndarray]


class Scorer:
    """Scores items under operators.

    Args:
        model: any transformers causal LM.
        items: what is scored.
        ops: the operators; None is the unsteered model.
        batch_size: branches at once; "auto" batches by tokens and halves where memory runs out.
        share: False is the plain path.

    Raises:
        SteerError: an operator that does not fit the model.
    """

    def __init__(
        self,
        model: Any,
        items: Sequence[Item],
        ops: Sequence[Operator | None],
        *,
        batch_size: int | str = "auto",
        share: bool = True,
    ) -> None:
        self.model, self.root = model, unwrapped(model)
        self.at = layout(self.root)
        self.items = items
        self.ops = [prepared(identity if op is None else op, self.root, self.at, strict=False) for op in ops]
        refuse_rows(self.ops, "scoring")
        refuse_open_rows(model, "continuations are scored in batches of any order")
        self.selections = Selections()
        steered = is_steered(self.root, self.at)
        [self.last] = self.at.resolve((resid_post[-1],))
        can = able(self.root, self.at, (self.last,))
        self.share, self.tokenwise = (can.share, can.narrow) if share and not steered else (False, False)
        self.longest = window(getattr(self.root, "config", None))
        self.narrow = "logits_to_keep" in inspect.signature(self.root.forward).parameters
        self.device = input_device(self.root)
        self.limit = limit_of(batch_size, "branches")
        self.budget = TOKENS.get(self.device.type, TOKENS_ELSEWHERE)
        self.trunks = [trunk(op, self.at) if share and not steered else -1 for op in self.ops]
        head = getattr(self.root, "get_output_embeddings", lambda: None)()
        self.vocabulary = 2**15 if head is None else head.weight.shape[0]

    def batches(self) -> list[list[int]]:
        """The items in groups of about one trunk pass, alike in length."""
        sizes = [len(item.prompt) + sum(map(len, item.continuations)) for item in self.items]
        order = sorted(range(len(self.items)), key=lambda i: (-sizes[i], i))
        groups: list[list[int]] = []
        for i in order:
            if groups and (len(groups[-1]) + 1) * sizes[groups[-1][0]] <= self.budget:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def run(self, skip: set[int] = frozenset()) -> Iterator[Found]:  # pyright: ignore[reportArgumentType]
        """Scores group by group, leaving out the items of `skip`."""
        for group in self.batches():
            left = [i for i in group if i not in skip]
            if left:
                yield self._group(left)

    def _group(self, group: list[int]) -> Found:
        trees: dict[tuple[int, int], Tree] = {}
        found = {i: np.zeros((len(self.ops), len(self.items[i].continuations))) for i in group}
        branches: list[Work] = []
        on_trunk: dict[int, list[Work]] = {}
        plain: list[Work] = []
        for i in group:
            tree = trees[i, -1] = tree_of(self.items[i])
            starts = self._starts(tree)
            fits = self.share and (self.longest is None or len(tree.ids) <= self.longest)
            for first in sorted(set(starts)):
                ops = tuple(c for c, start in enumerate(starts) if start == first)
                count = self._count(tree, first, len(ops))
                if fits and first and count > 1:
                    branches += [(i, ops[c : c + count], first) for c in range(0, len(ops), count)]
                    continue
                for c in ops:
                    if fits or tree.is_chain:
                        on_trunk.setdefault(self.trunks[c], []).append((i, (c,), 0))
                    else:
                        plain.append((i, (c,), 0))
        self._score(branches, trees, found)
        self._score_on_trunk(group, on_trunk, trees, found)
        for i, *_ in plain:
            for k, continuation in enumerate(self.items[i].continuations):
                if (i, k) not in trees:
                    trees[i, k] = tree_of(Item(self.items[i].prompt, (continuation,)))
        for k in sorted({k for _, k in trees if k >= 0}):
            self._score([work for work in plain if (work[0], k) in trees], trees, found, k)
        return Found(group, [found[i] for i in group])

    def _starts(self, tree: Tree) -> list[int]:
        """The first token that each operator may touch, the prompt's last at most, which predicts."""
        size, last = len(tree.ids), tree.prompt - 1
        tokens = Tokens(torch.arange(size).expand(1, size), torch.tensor([[tree.prompt]]), None)
        starts = []
        for op in self.ops:
            touched = op.touched(tokens)[0, :last].nonzero()
            # A condition on the prompt reads all of it, whatever its operator touches.
            starts.append(0 if asks_prompts(op) else int(touched[0]) if len(touched) else last)
        return starts

    def _count(self, tree: Tree, first: int, most: int) -> int:
        """How many branches a row holds at the least cost for each: the prefix is shared, attention grows."""

        def cost(count: int) -> float:
            size = width(tree, first, count)
            return size * (1 + size / (6 * self.at.d_model)) / count

        return min(range(1, most + 1), key=cost)

    def _score_on_trunk(self, group: list[int], work: dict[int, list[Work]], trees: Any, found: Any) -> None:
        """Rows of their own, those with one trunk together, on its states where that is right."""
        layers = [layer for layer, some in work.items() if layer >= 0 and len(some) > len({i for i, _, _ in some}) / 2]
        noted = None
        used = sorted({i for some in work.values() for i, _, _ in some})
        if layers and sum(map(len, work.values())) > len(used):
            noted = self._note(used, layers, trees)
        for layer, some in sorted(work.items()):
            good = noted is not None and layer in layers and repeats(self, layer)
            self._score(some, trees, found, on=(noted, layer, used) if good else None)

    def _note(self, used: list[int], layers: list[int], trees: Any) -> Noting | None:
        noting = Noting(layers)
        self._pass(arranged([(trees[i, -1], 0, 1) for i in used]), identity, noting)
        return noting if noting.alone else None

    def _score(self, work: Sequence[Work], trees: Any, found: Any, k: int = -1, on: Any = None) -> None:
        """Score rows in passes that fit the budget."""
        start, budget = 0, self.budget
        ordered = sorted(work, key=lambda w: -width(trees[w[0], k], w[2], len(w[1])))
        while start < len(ordered):
            some = self._fitting(ordered[start:], trees, k, budget)
            try:
                self._score_pass(some, trees, found, k, on)
            except torch.OutOfMemoryError:
                if len(some) == 1 or self.limit is not None:
                    raise
                budget = max(1, budget // 2)
                continue
            start += len(some)

    def _fitting(self, work: Sequence[Work], trees: Any, k: int, budget: int) -> Sequence[Work]:
        size = held = asked = 0
        for n, (i, ops, first) in enumerate(work):
            tree = trees[i, k]
            size = max(size, width(tree, first, len(ops)))
            held += len(ops)
            asked = max(asked, len(ops) * (sum(len(nodes) for nodes, _ in tree.asked) if self.narrow else size))
            full = held > self.limit if self.limit else (n + 1) * size > budget
            if n and (full or (n + 1) * asked * self.vocabulary > LOGITS):
                return work[:n]
        return work

    def _score_pass(self, work: Sequence[Work], trees: Any, found: Any, k: int, on: Any) -> None:
        batch = arranged([(trees[i, k], first, len(ops)) for i, ops, first in work])
        op = rows([self.ops[c] for _, ops, _ in work for c in ops])
        repeating = None
        if on is not None:
            noted, layer, used = on
            which = torch.tensor([used.index(i) for i, _, _ in work])
            repeating = Repeating(noted, layer, which, batch.ids.shape[1])
        sums = iter(self._log_probs(batch, self._pass(batch, op, repeating).logits))
        for i, ops, _ in work:
            for c in ops:
                for which in range(len(trees[i, k].asked)) if k < 0 else [k]:
                    found[i][c, which] = next(sums)

    def _pass(self, batch: Arranged, op: Operator, around: Noting | Repeating | None) -> Any:
        given: dict[str, Any] = inputs(batch, getattr(self.root, "dtype", torch.float32), self.device)
        if self.narrow:
            given["logits_to_keep"] = torch.from_numpy(batch.columns).to(self.device)
        index = None if batch.index is None else torch.from_numpy(batch.index)
        placed = Placed(op, index, batch.tokens)
        host = substitutions_of(self.root, self.at).host
        prompts = torch.tensor(batch.prompts)
        matter, through = None, () if around is None else around.sites
        below = all(site.block < self.last.block for site in (*op.sites, *op.reads))
        if self.tokenwise and below and not isinstance(around, Noting):
            # After its attention the last block works on the tokens that predict something alone.
            matter, through = torch.from_numpy(batch.matter), (*through, self.last)
        devices = functools.partial(device_of, self.root, self.at)
        entry = Entry(host, placed, devices, prompts, matter=matter, trunk=around, through=through)
        entry.selections = self.selections
        return passed(self.model, self.root, self.at, entry, given)

    def _log_probs(self, batch: Arranged, logits: torch.Tensor) -> list[float]:
        """The sum over its tokens of every continuation of every branch."""
        if logits.shape[1] != len(batch.columns):  # some models take `logits_to_keep` and compute all the same
            logits = logits[:, torch.from_numpy(batch.columns).to(logits.device)]
        row, column, token = torch.from_numpy(batch.asked).to(logits.device)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = wide[row, column, token] - wide.logsumexp(-1)[row, column]
        return np.bincount(batch.owner, weights=each.double().cpu().numpy()).tolist()


_repeating: "weakref.WeakKeyDictionary[Any, dict[Any, bool]]" = weakref.WeakKeyDictionary()


def repeats(scorer: Scorer, layer: int) -> bool:
    """Whether a model gives the same with its first blocks repeated from a note: asked of the model, once a layer.

    Blocks that hand more than the state to later ones (keys and values that others reuse, say) do not.
    """
    blocks, _, _ = walk(scorer.root, scorer.at.blocks[0].path)
    known = _repeating.setdefault(blocks, {})
    key = (layer, getattr(getattr(scorer.root, "config", None), "_attn_implementation", None))
    if key not in known:
        known[key] = contextvars.Context().run(_same_repeated, scorer, layer)
    return known[key]


def _same_repeated(scorer: Scorer, layer: int) -> bool:
    tree = tree_of(Item(tuple(range(5, 17)), ((20,),)))
    batch = arranged([(tree, 0, 1), (tree, 0, 1)])
    # A model may refuse in any way it likes: then it cannot.
    with contextlib.suppress(Exception):
        noting = Noting([layer])
        scorer._pass(batch, identity, noting)
        expected = scorer._pass(batch, identity, None).logits.float()
        repeated = scorer._pass(batch, identity, Repeating(noting, layer, torch.tensor([1, 0]), 12)).logits.float()
        error = (repeated - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)
        return bool(error.max() < 2e-2)
    return False
