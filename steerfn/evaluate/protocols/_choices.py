"""How likely a model finds the two answers of questions, in one or both orders of their options.

An answer that is a letter is forced to begin with "(": its probability is that of the letter after it. Both answers of
any question are read from where they begin to differ.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn._chat_template import Chat
from steerfn._errors import DataError
from steerfn.evaluate.protocols._question import Question
from steerfn.evaluate.protocols._run import Run
from steerfn.operators import Operator
from steerfn.reading._positions import common_prefix
from steerfn.scoring import Item, items_of


def p_match(log_match: Any, log_other: Any) -> np.ndarray:
    """The share of the matching answer in the two: `p(match) / (p(match) + p(other))`, from log-probabilities.

    Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition".

    Example:
        >>> import math
        >>> round(float(p_match(math.log(0.3), math.log(0.1))), 3)
        0.75
    """
    return np.exp(-np.logaddexp(0.0, np.asarray(log_other) - np.asarray(log_match)))


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """What operators make of questions; a *version* is a question in one order of its options.

    Attributes:
        log_probs: of the positive and the negative answer, `[operators, versions, 2]`.
        item: which question each version is of, `[versions]`.
        first: 1 where the positive answer has the earlier letter, else 0; NaN without letters, `[versions]`.
        is_swapped: whether a version's options are swapped, `[versions]`.
    """

    log_probs: np.ndarray
    item: np.ndarray
    first: np.ndarray
    is_swapped: np.ndarray

    @property
    def log_odds(self) -> np.ndarray:
        """`log p(positive) - log p(negative)`, `[operators, versions]`."""
        return self.log_probs[..., 0] - self.log_probs[..., 1]

    @property
    def p_match(self) -> np.ndarray:
        """The share of the positive answer, `[operators, versions]`."""
        return p_match(self.log_probs[..., 0], self.log_probs[..., 1])

    @property
    def p_first(self) -> np.ndarray:
        """The share of the answer with the earlier letter, whatever it says: 0.5 shows no letter bias."""
        share = self.p_match
        return np.where(np.isnan(self.first), np.nan, np.where(self.first == 1, share, 1 - share))

    @property
    def mass(self) -> np.ndarray:
        """The probability of both answers together."""
        return np.exp(self.log_probs).sum(-1)

    def by_item(self, values: np.ndarray) -> np.ndarray:
        """The mean of `[operators, versions]` over the versions of each question, `[operators, questions]`."""
        counts = np.bincount(self.item)
        return np.stack([np.bincount(self.item, weights=row) / counts for row in values])


def choices(
    run: Run, model: Any, tokenizer: Any, questions: Sequence[Question], ops: Sequence[Operator | None], both: bool
) -> Choices:
    """Score every question under every operator, its options in both orders where `both` says so.

    Raises:
        DataError: an option that a question does not have, or answers that cannot be told apart by their tokens.
    """
    versions = [(i, question, False) for i, question in enumerate(questions)]
    if both:
        versions += [(i, question.swapped(), True) for i, question in enumerate(questions) if question.letters]
    chat = bool(getattr(tokenizer, "chat_template", None)) if run.chat is None else run.chat
    items = _items(tokenizer, [question for _, question, _ in versions], chat)
    log_probs = run.log_probs(model, items, ops)
    found = np.stack([rows[:, :2] - rows[:, 2:].sum(1, keepdims=True) for rows in log_probs], axis=1)
    letters = [question.letters for _, question, _ in versions]
    return Choices(
        log_probs=found,
        item=np.array([i for i, _, _ in versions]),
        first=np.array([np.nan if each is None else float(each[0] < each[1]) for each in letters]),
        is_swapped=np.array([swapped for _, _, swapped in versions]),
    )


def _items(tokenizer: Any, questions: Sequence[Question], chat: Chat) -> list[Item]:
    """Items of the two answers and, as a third continuation, of what both begin with, where that is anything."""
    texts = [question.text if chat else question.text.rstrip() for question in questions]
    found = []
    for question, item in zip(
        questions, items_of(tokenizer, texts, [_answers(q, chat) for q in questions], chat), strict=True
    ):
        common = common_prefix(*item.continuations)
        if common == min(map(len, item.continuations)):
            raise DataError(
                f"The answers {question.positive!r:.60} and {question.negative!r:.60} cannot be told apart by their "
                "tokens: one begins like the other and ends there; give answers that differ before that."
            )
        begin = item.continuations[0][:common]
        found.append(Item(item.prompt, (*item.continuations, begin)) if begin else item)
    return found


def _answers(question: Question, chat: Chat) -> list[str]:
    """The answers as they follow their question: in chat form as an answer of their own, else after a space."""
    lead = "" if chat else " "
    if question.letters is not None:
        return [f"{lead}({letter}" for letter in question.letters]
    return [lead + answer.strip() for answer in (question.positive, question.negative)]
