"""How likely a steered model finds some texts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from steerfn.discover.search._predict import Predictor
from steerfn.operators import identity
from steerfn.reading._budget import limit_of

TOKENS = {"cpu": 512}
"""Tokens, padding included, that `batch_size="auto"` puts into one batch, by device: each has logits over the whole
vocabulary."""
TOKENS_ELSEWHERE = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Perplexity:
    """The mean loss of a model on texts, as a function of the operator: `mean_t -log p_t`, in nats a token.

    Attributes:
        predict: the model.
        rows: token ids of the texts, the longest first.
        budget: tokens of a batch; None for `limit`.
        limit: texts of a batch; None for `budget`.
    """

    predict: Predictor
    rows: Sequence[Sequence[int]]
    budget: int | None
    limit: int | None

    @classmethod
    def of(cls, predict: Predictor, rows: Sequence[Sequence[int]], batch_size: int | str) -> "Perplexity":
        """The loss on some texts.

        Raises:
            DataError: a batch size that is none.
        """
        limit = limit_of(batch_size)
        budget = None if limit else TOKENS.get(predict.device.type, TOKENS_ELSEWHERE)
        return cls(predict, sorted(rows, key=len, reverse=True), budget, limit)

    def __call__(self, op: Any = None) -> float:
        """The mean loss over all tokens of all texts but the first of each."""
        op = identity if op is None else op
        total, start, budget = 0.0, 0, self.budget
        while start < len(self.rows):
            size = self.limit or max(1, (budget or 1) // len(self.rows[start]))
            batch = self.rows[start : start + size]
            try:
                total += self._loss(op, batch)
            except torch.OutOfMemoryError:
                if budget is None or len(batch) == 1:
                    raise
                budget = len(batch) * len(batch[0]) // 2
                continue
            start += len(batch)
        return total / sum(len(row) - 1 for row in self.rows)

    def _loss(self, op: Any, rows: Sequence[Sequence[int]]) -> float:
        """The sum over the tokens of a batch."""
        with torch.no_grad():
            logits = self.predict(op, rows, torch.arange(len(rows[0]) - 1), prompts=[1] * len(rows))
            total = 0.0
            for row, predicted in zip(rows, logits, strict=True):  # one text at a time bounds what float32 takes
                following = torch.tensor(row[1:], device=predicted.device)
                losses = F.cross_entropy(predicted[: len(following)].float(), following, reduction="none")
                total += float(losses.double().sum())
        return total
