"""The scoring engine: many operators on the same items, with nothing computed twice that they share.

Three ways, chosen for each operator and item by cost:

- *branches*: an operator that leaves the prompt's beginning alone shares one row with the others, in which that
  beginning stands once (`_trees`);
- *rows on a trunk*: an operator that touches the prompt gets a row of its own, in which the blocks below its first
  site are not run again (`_trunk`);
- *plain*: a row for each continuation and operator, where the model takes no 4-D mask or a steering is open.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn.model import Selections, infer, layout, observation, unwrap_model
from steerfn.operators import Info, Operator, Tokens, asks_prompts, identity, refuse_rows, rows, token_scopes
from steerfn.run._budget import Budget
from steerfn.run._capabilities import agrees, probe_once, window
from steerfn.run._read import capabilities_at, is_steered
from steerfn.run._text import input_device
from steerfn.run._trees import Item, PackedBranches, Tree, pack_branches, tree_of, width
from steerfn.run._trunk import RecordBlocks, ReplayBlocks, trunk
from steerfn.values import Site, replace, resid_post, static, struct
from steerfn.verbs import prepare_operators, refuse_open_rows

LOGITS = 2**26
"""Logits of one pass at most: 256 MiB in float32."""

Work = tuple[int, tuple[int, ...], int]
"""A row: an item, the operators that have a branch in it, and the first token of the branches."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredItems:
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
        self.model, self.root = model, unwrap_model(model)
        self.at = layout(self.root)
        self.items = items
        operators = [identity if op is None else op for op in ops]
        self.ops: list[Any] = prepare_operators(operators, self.root, self.at)
        refuse_rows(self.ops, "scoring")
        refuse_open_rows(model, "continuations are scored in batches of any order")
        self.selections = Selections()
        steered = is_steered(self.root, self.at)
        [self.last] = self.at.resolve((resid_post[-1],))
        capabilities = capabilities_at(self.root, self.at, (self.last,))
        shared = share and not steered
        self.share, self.tokenwise = shared and capabilities.share, shared and capabilities.narrow
        self.longest = window(getattr(self.root, "config", None))
        self.narrow = "logits_to_keep" in inspect.signature(self.root.forward).parameters
        self.device = input_device(self.root)
        self.budget = Budget.of(batch_size, self.device)
        self.trunks = [trunk(op, self.at) if shared else -1 for op in self.ops]
        head = getattr(self.root, "get_output_embeddings", lambda: None)()
        self.vocabulary = 2**15 if head is None else head.weight.shape[0]

    def batches(self) -> list[list[int]]:
        """The items in groups of about one trunk pass, alike in length."""
        sizes = [len(item.prompt) + sum(map(len, item.continuations)) for item in self.items]
        order = sorted(range(len(self.items)), key=lambda i: (-sizes[i], i))
        groups: list[list[int]] = []
        for i in order:
            if groups and (len(groups[-1]) + 1) * sizes[groups[-1][0]] <= self.budget.size:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def run(self, skip: set[int] = frozenset()) -> Iterator[ScoredItems]:  # pyright: ignore[reportArgumentType]
        """Scores group by group, leaving out the items of `skip`."""
        for group in self.batches():
            left = [i for i in group if i not in skip]
            if left:
                yield self._group(left)

    def _group(self, group: list[int]) -> ScoredItems:
        trees: dict[tuple[int, int], Tree] = {}
        scores = {i: np.zeros((len(self.ops), len(self.items[i].continuations))) for i in group}
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
                    if tree.is_chain or (fits and not token_scopes(self.ops[c])):  # ids make a row in one order only
                        on_trunk.setdefault(self.trunks[c], []).append((i, (c,), 0))
                    else:
                        plain.append((i, (c,), 0))
        self._score(branches, trees, scores)
        self._score_on_trunk(on_trunk, trees, scores)
        # A tree cannot run without a mask of its own, so each continuation has a row.
        for i, *_ in plain:
            for k, continuation in enumerate(self.items[i].continuations):
                if (i, k) not in trees:
                    trees[i, k] = tree_of(Item(self.items[i].prompt, (continuation,)))
        for k in sorted({k for _, k in trees if k >= 0}):
            self._score([work for work in plain if (work[0], k) in trees], trees, scores, k)
        return ScoredItems(group, [scores[i] for i in group])

    def _starts(self, tree: Tree) -> list[int]:
        """The first token that each operator may touch, the prompt's last at most, which predicts."""
        size, last = len(tree.ids), tree.prompt - 1
        tokens = Tokens(torch.arange(size).expand(1, size), torch.tensor([[tree.prompt]]), None)
        starts = []
        for op in self.ops:
            if asks_prompts(op) or token_scopes(op):  # they read the whole row, whatever the operator touches
                starts.append(0)
                continue
            touched = op.touched(tokens)[0, :last].nonzero()
            starts.append(int(touched[0]) if len(touched) else last)
        return starts

    def _count(self, tree: Tree, first: int, most: int) -> int:
        """How many branches a row holds at the least cost for each: the prefix is shared, attention grows."""

        def cost(count: int) -> float:
            size = width(tree, first, count)
            return size * (1 + size / (6 * self.at.d_model)) / count

        return min(range(1, most + 1), key=cost)

    def _score_on_trunk(self, work: dict[int, list[Work]], trees: Any, scores: Any) -> None:
        """Rows of their own, those with one trunk together, on its states where that is right."""
        layers = [layer for layer in work if layer >= 0]
        used = sorted({i for some in work.values() for i, _, _ in some})
        noted = None
        # Noting the trunk is a pass of its own, which pays where an item has several rows.
        if layers and sum(map(len, work.values())) > len(used):
            noted = RecordBlocks(layers)
            self._pass(pack_branches([(trees[i, -1], 0, 1) for i in used]), identity, noted)
        for layer, some in sorted(work.items()):
            good = noted is not None and noted.alone and layer >= 0 and repeats(self, layer)
            self._score(some, trees, scores, on=(noted, layer, used) if good else None)

    def _score(self, work: Sequence[Work], trees: Any, scores: Any, k: int = -1, on: Any = None) -> None:
        """Score rows in passes that fit the budget."""

        def size(row: Work) -> int:
            return width(trees[row[0], k], row[2], len(row[1]))

        def together(some: Sequence[Work]) -> int:
            branches = asked = 0
            for n, (i, ops, _) in enumerate(some):
                branches += len(ops)
                logits = sum(len(nodes) for nodes, _ in trees[i, k].asked) if self.narrow else size(some[0])
                asked = max(asked, len(ops) * logits)
                full = self.budget.limit is not None and branches > self.budget.limit
                if n and (full or (n + 1) * asked * self.vocabulary > LOGITS):
                    return n
            return len(some)

        def step(some: Sequence[Work]) -> None:
            self._score_pass(some, trees, scores, k, on)

        for _ in self.budget.run(sorted(work, key=size, reverse=True), step, size, together):
            pass

    def _score_pass(self, work: Sequence[Work], trees: Any, scores: Any, k: int, on: Any) -> None:
        batch = pack_branches([(trees[i, k], first, len(ops)) for i, ops, first in work])
        op = rows([self.ops[c] for _, ops, _ in work for c in ops])
        repeating = None
        if on is not None:
            noted, layer, used = on
            which = torch.tensor([used.index(i) for i, _, _ in work])
            repeating = ReplayBlocks(noted, layer, which, batch.grid.ids.shape[1])
        sums = iter(self._log_probs(batch, self._pass(batch, op, repeating).logits))
        for i, ops, _ in work:
            for c in ops:
                for which in range(len(trees[i, k].asked)) if k < 0 else [k]:
                    scores[i][c, which] = next(sums)

    def _pass(self, batch: PackedBranches, op: Operator, around: RecordBlocks | ReplayBlocks | None) -> Any:
        given: dict[str, Any] = batch.grid.inputs(getattr(self.root, "dtype", torch.float32), self.device)
        if self.narrow:
            given["logits_to_keep"] = torch.from_numpy(batch.columns).to(self.device)
        index = None if batch.index is None else torch.from_numpy(batch.index)
        placed = PackedOperator(op, index, batch.tokens)
        prompts = torch.tensor(batch.prompts)
        matter, through = None, () if around is None else around.sites
        below = all(site.block < self.last.block for site in (*op.sites, *op.reads))
        if self.tokenwise and below and not isinstance(around, RecordBlocks):
            # After its attention the last block works on the tokens that predict something alone.
            matter, through = torch.from_numpy(batch.matter), (*through, self.last)
        entry = observation(
            self.root, self.at, placed, prompts, matter=matter, trunk=around, through=through,
            selections=self.selections,
        )  # fmt: skip
        return infer(self.model, self.root, self.at, entry, given)

    def _log_probs(self, batch: PackedBranches, logits: torch.Tensor) -> list[float]:
        """The sum over its tokens of every continuation of every branch."""
        if logits.shape[1] != len(batch.columns):  # some models take `logits_to_keep` and compute all the same
            logits = logits[:, torch.from_numpy(batch.columns).to(logits.device)]
        row, column, token = torch.from_numpy(batch.asked).to(logits.device)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = wide[row, column, token] - wide.logsumexp(-1)[row, column]
        return np.bincount(batch.owner, weights=each.double().cpu().numpy()).tolist()


def repeats(scorer: Scorer, layer: int) -> bool:
    """Whether a model gives the same with its first blocks repeated from a note: probed once a layer.

    Blocks that hand more than the state to later ones (keys and values that others reuse, say) do not.
    """

    def repeat() -> Iterator[tuple[Tensor, Tensor]]:
        tree = tree_of(Item(tuple(range(5, 17)), ((20,),)))
        batch = pack_branches([(tree, 0, 1), (tree, 0, 1)])
        noting = RecordBlocks([layer])
        scorer._pass(batch, identity, noting)
        plain = scorer._pass(batch, identity, None).logits.float()
        yield scorer._pass(batch, identity, ReplayBlocks(noting, layer, torch.tensor([1, 0]), 12)).logits.float(), plain

    return probe_once(scorer.root, scorer.at, ("trunk", layer), lambda: agrees(repeat))


@struct
class PackedOperator(Operator):
    """`operator` acts on gathered branches, and what it gives is put back.

    Attributes:
        operator: with a row for each branch.
        index: flat places of the branches' tokens, `[branches, longest]`; None where the branches are the rows.
        tokens: the branches' tokens.
    """

    operator: Operator
    index: Tensor | None = static()
    tokens: Tokens = static()

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.operator.reads

    def bind(self, site: Site, device: Any = None) -> Any:
        inner = self.operator.bind_at(site, device)
        if inner is None:
            return None
        at = self.tokens
        index = None if self.index is None else self.index.to(device)
        real, ids = (None if each is None else each.to(device) for each in (at.real, at.ids))
        tokens = Tokens(at.index.to(device), at.prompt_length.to(device), real, ids=ids, row=at.row)
        return _Placed(inner=inner, index=index, tokens=tokens)


@struct
class _Placed:
    inner: Any
    index: Any
    tokens: Any

    def __call__(self, hidden: Tensor, info: Info) -> Tensor:
        index, real = self.index, self.tokens.real
        if index is None:
            out = self.inner(hidden, replace(info, tokens=self.tokens))
            return out if real is None else torch.where(real.unsqueeze(-1), out, hidden)
        reads = None if info.reads is None else {site: _gather_rows(state, index) for site, state in info.reads.items()}
        out = self.inner(_gather_rows(hidden, index), replace(info, tokens=self.tokens, reads=reads))
        out, index = (out.flatten(0, 1), index.flatten()) if real is None else (out[real], index[real])
        return hidden.flatten(0, 1).index_copy(0, index, out).reshape(hidden.shape)


def _gather_rows(state: Tensor, index: Tensor) -> Tensor:
    return state.flatten(0, 1)[index]
