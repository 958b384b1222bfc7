"""How likely a model finds the two answers of questions, in one or both orders of their options.

An answer that is a letter is forced to begin with "(": its probability is that of the letter after it. Both answers of
any question are read from where they begin to differ.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerfn.evaluate.protocols._data import entries
from steerfn.evaluate.protocols._run import ProtocolRun
from steerfn.operators import Operator
from steerfn.run import Chat, Item, common_prefix, items_of
from steerfn.values import DataError, public

FORMATS = (
    ("question", "answer_matching_behavior", "answer_not_matching_behavior"),
    ("prompt", "correct", "incorrect"),
)
"""The keys of a question, its positive and its negative answer, in CAA's and Anthropic's files, and in CAA's MMLU."""
LETTER = re.compile(r"\s*\(([A-Z])\)\s*")
OPTION = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and two answers to it.

    Attributes:
        text: the question; where its answers are letters, with the options in lines such as "(A) Yes".
        positive: the answer that shows the behaviour, or is correct.
        negative: the other.
    """

    text: str
    positive: str
    negative: str

    @property
    def letters(self) -> tuple[str, str] | None:
        """The letters of the positive and the negative answer, where they are "(A)" and "(B)"."""
        one, other = LETTER.fullmatch(self.positive), LETTER.fullmatch(self.negative)
        return (one[1], other[1]) if one and other else None

    def swap_options(self) -> "Question":
        """The same question with the options of its two letters in each other's place, and its answers' letters too.

        Raises:
            DataError: an option that the question does not have.
        """
        letters = self.letters
        if letters is None:
            return self
        places = _options(self.text)
        if missing := [letter for letter in letters if letter not in places]:
            raise DataError(
                f"The question {self.text[:60]!r} has no line that begins with ({missing[0]}), though an answer of it "
                "is; write every option in a line of its own, or pass both_orders=False."
            )
        (a, b), (c, d) = sorted(places[letter] for letter in letters)
        text = self.text[:a] + self.text[c:d] + self.text[b:c] + self.text[a:b] + self.text[d:]
        return Question(text, self.negative, self.positive)


def _options(text: str) -> dict[str, tuple[int, int]]:
    """Where the words of each option are: from behind its letter to the next option, a blank line, or the end."""
    marks = list(OPTION.finditer(text))
    spans = {}
    for mark, after in zip(marks, [*marks, None][1:], strict=True):
        end = len(text) if after is None else after.start()
        words = text[mark.end() : end].split("\n\n")[0].rstrip()
        spans[mark[1]] = (mark.end(), mark.end() + len(words))
    return spans


def questions_of(data: Any, what: str = "data") -> list[Question]:
    """Questions from a list of dicts, a contrast set with items, or a file of CAA's, Anthropic's or MMLU's format.

    Raises:
        FileError: a file that cannot be read.
        DataError: an item without its keys or without text, or with the same answer twice.
    """
    return [_question(entry.where, entry.value) for entry in entries(data, what)]


def _question(where: str, value: Any) -> Question:
    if isinstance(value, Question):
        return value
    for keys in FORMATS:
        if isinstance(value, Mapping) and keys[0] in value and (keys[1] in value or keys[2] in value):
            break
    else:
        shapes = " or ".join(", ".join(keys) for keys in FORMATS)
        raise DataError(f"{where} is {value!r:.60}; a question is a dict with {shapes}.")
    texts: list[Any] = [value.get(key) for key in keys]
    if lacking := [key for key, each in zip(keys, texts, strict=True) if not isinstance(each, str) or not each.strip()]:
        raise DataError(f"{where} has no text for {', '.join(lacking)}; give it words, or remove it.")
    if texts[1].strip() == texts[2].strip():
        raise DataError(f"{where} has the same answer twice, {texts[1]!r:.60}; give it two that differ, or remove it.")
    return Question(*texts)


@public
def p_match(log_match: Any, log_other: Any) -> np.ndarray:
    """The share of the matching answer in the two: `p(match) / (p(match) + p(other))`, from log-probabilities.

    Args:
        log_match: of the answer that matches the behaviour, one or many, in nats.
        log_other: of the other answer.

    Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition".

    Example:
        >>> import math, steerfn as sf
        >>> round(float(sf.protocols.p_match(math.log(0.3), math.log(0.1))), 3)
        0.75
    """
    return np.exp(-np.logaddexp(0.0, np.asarray(log_other) - np.asarray(log_match)))


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """Answers to questions under each operator; a *version* is a question in one order of its options.

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
    run: ProtocolRun,
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    ops: Sequence[Operator | None],
    both: bool,
) -> Choices:
    """Score every question under every operator, its options in both orders where `both` says so.

    Raises:
        DataError: an option that a question does not have, or answers that cannot be told apart by their tokens.
    """
    versions = [(i, question, False) for i, question in enumerate(questions)]
    if both:
        versions += [(i, question.swap_options(), True) for i, question in enumerate(questions) if question.letters]
    chat = run.chat_with(tokenizer)
    items = _items(tokenizer, [question for _, question, _ in versions], chat)
    log_probs = run.log_probs(model, items, ops)
    values = np.stack([rows[:, :2] - rows[:, 2:].sum(1, keepdims=True) for rows in log_probs], axis=1)
    letters = [question.letters for _, question, _ in versions]
    return Choices(
        log_probs=values,
        item=np.array([i for i, _, _ in versions]),
        first=np.array([np.nan if each is None else float(each[0] < each[1]) for each in letters]),
        is_swapped=np.array([swapped for _, _, swapped in versions]),
    )


def _items(tokenizer: Any, questions: Sequence[Question], chat: Chat) -> list[Item]:
    """Items of the two answers and, as a third continuation, of what both begin with, where that is anything."""
    texts = [question.text if chat else question.text.rstrip() for question in questions]
    items = []
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
        items.append(Item(item.prompt, (*item.continuations, begin)) if begin else item)
    return items


def _answers(question: Question, chat: Chat) -> list[str]:
    """The answers as they follow their question: in chat form as an answer of their own, else after a space."""
    lead = "" if chat else " "
    if question.letters is not None:
        return [f"{lead}({letter}" for letter in question.letters]
    return [lead + answer.strip() for answer in (question.positive, question.negative)]
