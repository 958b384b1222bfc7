"""The losses that a direction is optimised for: of continuations, and of preferences between them.

Examples go from what a user writes to token ids, and to a part to stop by.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steerfn.datasets import held_out_sides
from steerfn.operators import identity
from steerfn.run import Chat, Predictor, Text, checked_chat, encode_continuations
from steerfn.values import DataError, number_groups_by_kind


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A prompt and what follows it.

    Attributes:
        ids: token ids of both.
        start: the first token that is not the prompt's.
    """

    ids: tuple[int, ...]
    start: int


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two continuations of a prompt.

    Attributes:
        preferred: the one to make likelier.
        rejected: the other.
        before: `log p(preferred) - log p(rejected)` of the unsteered model.
    """

    preferred: Continuation
    rejected: Continuation
    before: float = 0.0


@dataclasses.dataclass(frozen=True)
class Examples:
    """The continuations and preferences that a loss averages over.

    Attributes:
        promote: continuations to make likelier.
        suppress: continuations to make less likely.
        pairs: preferences.
    """

    promote: tuple[Continuation, ...] = ()
    suppress: tuple[Continuation, ...] = ()
    pairs: tuple[Preference, ...] = ()

    def __len__(self) -> int:
        return len(self.promote) + len(self.suppress) + len(self.pairs)


def losses(predict: Predictor, op: Any, examples: Examples, beta: float) -> tuple[Tensor, ...]:
    """The loss of each example, one tensor for each kind that there is.

    With `p_t` the probability of token `t` of a continuation: `mean_t -log p_t` to promote, `mean_t -log(1 - p_t)` to
    suppress (at least 0, where `mean_t log p_t` would have no bound), and `-log sigmoid(beta (m - m_0))` for a
    preference, with `m = log p(preferred) - log p(rejected)` and `m_0` that of the unsteered model.
    """
    terms = []
    if examples.promote:
        likely, _, real = _log_probabilities(predict, op, examples.promote)
        terms.append(_mean(-likely, real))
    if examples.suppress:
        _, unlikely, real = _log_probabilities(predict, op, examples.suppress)
        terms.append(_mean(-unlikely, real))
    if examples.pairs:
        change = margins(predict, op, examples.pairs)
        change = change - torch.tensor([pair.before for pair in examples.pairs], dtype=change.dtype).to(change.device)
        terms.append(-F.logsigmoid(beta * change))
    return tuple(terms)


def margins(predict: Predictor, op: Any, pairs: Sequence[Preference]) -> Tensor:
    """`log p(preferred) - log p(rejected)` of each pair, over all tokens of the continuations."""
    rows = [*(pair.preferred for pair in pairs), *(pair.rejected for pair in pairs)]
    likely, _, real = _log_probabilities(predict, op, rows)
    preferred, rejected = torch.where(real, likely, 0.0).sum(-1).split(len(pairs))
    return preferred - rejected


def _mean(values: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, values, 0.0).sum(-1) / real.sum(-1)


def _log_probabilities(predict: Predictor, op: Any, rows: Sequence[Continuation]) -> tuple[Tensor, Tensor, Tensor]:
    """`log p` and `log(1 - p)` of the tokens of continuations, and which entries are such: `[rows, places]` each."""
    places = torch.arange(min(row.start for row in rows) - 1, max(len(row.ids) for row in rows) - 1)
    logits = predict(op, [row.ids for row in rows], places, prompts=[row.start for row in rows])
    targets, real = torch.zeros(len(rows), len(places), dtype=torch.long), []
    for i, row in enumerate(rows):
        following = torch.tensor(row.ids[int(places[0]) + 1 :])
        targets[i, : len(following)] = following
        real.append((places + 1 >= row.start) & (places + 1 < len(row.ids)))
    targets = targets.to(logits.device).unsqueeze(-1)
    total = logits.logsumexp(-1)
    likely = logits.gather(-1, targets).squeeze(-1) - total
    # log(1 - p) from the other tokens, so that it is exact where p is nearly 1.
    others = logits.scatter(-1, targets, -torch.inf).logsumexp(-1)
    return likely, others - total, torch.stack(real).to(logits.device)


def with_margins(predict: Predictor, pairs: Sequence[Preference], size: int) -> tuple[Preference, ...]:
    """Pairs that know the unsteered model's margin."""
    preferences: list[Preference] = []
    for i in range(0, len(pairs), size):
        chunk = pairs[i : i + size]
        with torch.no_grad():
            before = margins(predict, identity, chunk).tolist()
        preferences += [dataclasses.replace(pair, before=m) for pair, m in zip(chunk, before, strict=True)]
    return tuple(preferences)


def examples_of(
    tokenizer: Any, promote: Any, suppress: Any, pairs: Any, chat: Chat
) -> tuple[Examples, dict[str, list[Text]]]:
    """The examples, and the prompt of each by kind."""
    checked_chat(chat)
    by_kind: dict[str, tuple[Any, ...]] = {}
    prompts: dict[str, list[Text]] = {}
    for name, given, size, shape in (
        ("promote", promote, 2, "(prompt, continuation)"),
        ("suppress", suppress, 2, "(prompt, continuation)"),
        ("pairs", pairs, 3, "(prompt, preferred, rejected)"),
    ):
        items = [] if given is None else given
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise DataError(f"{name} must be a list of {shape}, not {items!r:.80}.")
        for i, item in enumerate(items):
            if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != size:
                raise DataError(f"{name}[{i}] is {item!r:.80}; pass {shape}.")
        prompts[name] = [prompt for prompt, *_ in items]
        rows = [
            tuple(Continuation(tuple(ids), start) for ids, start in row)
            for row in encode_continuations(
                tokenizer, prompts[name], [following for _, *following in items], chat, name
            )
        ]
        for i, row in enumerate(rows):
            if size == 3 and row[0].ids == row[1].ids:
                raise DataError(f"pairs[{i}] prefers a continuation to itself; pass two that differ.")
        by_kind[name] = tuple(Preference(row[0], row[1]) if size == 3 else row[0] for row in rows)
    examples = Examples(**by_kind)
    if not len(examples):
        raise DataError(
            "There is nothing to optimise; pass promote=[(prompt, continuation)], suppress=[...] or "
            "pairs=[(prompt, preferred, rejected)]."
        )
    return examples, prompts


def split_examples(
    examples: Examples, prompts: dict[str, list[Text]], part: float, seed: int, groups: Any = None
) -> tuple[Examples, Examples]:
    """Examples to learn from and to stop by, divided by prompt or group; a kind that cannot be divided is in both."""
    if part == 0:
        return examples, examples
    if groups is not None:
        units = number_groups_by_kind(groups, {kind: len(each) for kind, each in prompts.items() if each})
        groups = [unit for each in units.values() for unit in each]
    every = [prompt for each in prompts.values() for prompt in each]
    out = iter(held_out_sides({"examples": every}, part, seed, groups)["examples"])
    sides: dict[bool, dict[str, tuple[Any, ...]]] = {False: {}, True: {}}
    for field in dataclasses.fields(examples):
        items = getattr(examples, field.name)
        flags = [next(out) for _ in items]
        apart = any(flags) and not all(flags)
        for side, held in sides.items():
            held[field.name] = tuple(x for x, flag in zip(items, flags, strict=True) if flag is side or not apart)
    return Examples(**sides[False]), Examples(**sides[True])
