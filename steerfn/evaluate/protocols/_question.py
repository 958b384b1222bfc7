"""Questions with two answers, and the same question with the two options in each other's place."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from steerfn._errors import DataError
from steerfn.evaluate.protocols._data import entries

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

    def swapped(self) -> "Question":
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
    found = {}
    for mark, after in zip(marks, [*marks, None][1:], strict=True):
        end = len(text) if after is None else after.start()
        words = text[mark.end() : end].split("\n\n")[0].rstrip()
        found[mark[1]] = (mark.end(), mark.end() + len(words))
    return found


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
    found: list[Any] = [value.get(key) for key in keys]
    if lacking := [key for key, each in zip(keys, found, strict=True) if not isinstance(each, str) or not each.strip()]:
        raise DataError(f"{where} has no text for {', '.join(lacking)}; give it words, or remove it.")
    if found[1].strip() == found[2].strip():
        raise DataError(f"{where} has the same answer twice, {found[1]!r:.60}; give it two that differ, or remove it.")
    return Question(*found)
