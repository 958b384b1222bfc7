"""What a direction is optimised for: losses of continuations, and of preferences between them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steerfn.discover.search._predict import Predictor
from steerfn.operators import identity


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
    """What a loss is taken over.

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
    found = []
    if examples.promote:
        likely, _, real = _log_probabilities(predict, op, examples.promote)
        found.append(_mean(-likely, real))
    if examples.suppress:
        _, unlikely, real = _log_probabilities(predict, op, examples.suppress)
        found.append(_mean(-unlikely, real))
    if examples.pairs:
        change = margins(predict, op, examples.pairs)
        change = change - torch.tensor([pair.before for pair in examples.pairs], dtype=change.dtype).to(change.device)
        found.append(-F.logsigmoid(beta * change))
    return tuple(found)


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
    found: list[Preference] = []
    for i in range(0, len(pairs), size):
        chunk = pairs[i : i + size]
        with torch.no_grad():
            before = margins(predict, identity, chunk).tolist()
        found += [dataclasses.replace(pair, before=m) for pair, m in zip(chunk, before, strict=True)]
    return tuple(found)
