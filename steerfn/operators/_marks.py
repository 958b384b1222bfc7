"""Where marks open and close something in rows of token ids.

A mark that is one token of the tokenizer is that id: the same text written in other tokens is a quotation. A mark that
is not is its text, however it is cut into tokens, so that a token may begin before the mark or go on after it.

Both are words over letters, a letter being a token that marks name or a character of any other token. Aho and
Corasick's automaton reads them; what it does over a whole token is worked out once for a tokenizer, so that reading
a row takes table look-ups alone, in all rows and columns at once.

Source: Aho and Corasick 1975, "Efficient string matching".
"""

import dataclasses
import hashlib
import re
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from steerfn.values import DataError, TokenMask

OPENS, CLOSES = 1, 2
Letter = int | str
OTHER = ""
"""The letter of what is in no mark."""
_known: weakref.WeakKeyDictionary[Any, dict[Any, "Marks"]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class Marks:
    """Marks that open something and marks that close it, in the tokens of one tokenizer.

    Args:
        steps: the state after each token from each state, `[states, vocabulary + 1]`; the last column is for padding.
        events: the last mark that ends in the token, of the same shape: 0 for none, `OPENS` or `CLOSES`.
        reach: the tokens that a mark takes at most.

    Attributes:
        key: the same for marks that are alike.
    """

    key: ClassVar[str]
    _tables: ClassVar[dict[torch.device, tuple[Tensor, Tensor]]]

    steps: Tensor
    events: Tensor
    reach: int

    @classmethod
    def of(cls, tokenizer: Any, opens: Sequence[str], closes: Sequence[str]) -> "Marks":
        """The marks of a tokenizer, by their texts.

        Raises:
            DataError: a mark that ends with another one of the other kind.
        """
        for one in opens:
            for other in closes:
                if one.endswith(other) or other.endswith(one):
                    raise DataError(
                        f"The mark {one!r} opens and {other!r} closes, but one of them ends with the other, so both "
                        "would be there at once; pass marks that do not."
                    )
        made, key = _known.setdefault(tokenizer, {}), (len(tokenizer), tuple(opens), tuple(closes))
        if key not in made:
            made[key] = cls(*_tables(tokenizer, dict.fromkeys(opens, OPENS) | dict.fromkeys(closes, CLOSES)))
        return made[key]

    def __post_init__(self) -> None:
        key = hashlib.sha256(self.steps.numpy().tobytes() + self.events.numpy().tobytes()).hexdigest()
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "_tables", {self.steps.device: (self.steps, self.events)})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Marks) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> Any:  # without the copies on other devices
        return Marks, (self.steps, self.events, self.reach)

    def between(self, ids: Tensor) -> TokenMask:
        """True from the token that ends a mark that opens to the one that ends a mark that closes, both included.

        Args:
            ids: whole rows, `[batch, n]`; padding and what else is no token is read as a token of no mark.
        """
        events = self.ends(ids)
        place = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        last = torch.where(events > 0, 2 * place + (events == OPENS), 0).cummax(-1).values  # odd: it opens
        inside = last % 2 == 1
        return inside | F.pad(inside, (1, 0))[:, : ids.shape[1]]

    def ends(self, ids: Tensor) -> Tensor:
        """The last mark that ends in each token, `[batch, n]`.

        A mark takes `reach` tokens at most, so the state before a token is that of as many tokens read from the start.
        """
        steps, events = self._on(ids.device)
        none = events.shape[1] - 1
        ids = torch.where((ids >= 0) & (ids < none), ids, none)
        state = torch.zeros_like(ids)
        for back in range(self.reach - 1, 0, -1):
            state = steps[state, F.pad(ids, (back, 0), value=none)[:, : ids.shape[1]]].long()
        return events[state, ids]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            self._tables[device] = self.steps.to(device), self.events.to(device)
        return self._tables[device]


def _tables(tokenizer: Any, marks: dict[str, int]) -> tuple[Tensor, Tensor, int]:
    """`Marks`, as its arguments."""
    vocabulary, added = tokenizer.get_vocab(), getattr(tokenizer, "get_added_vocab", dict)()
    words = {_word(mark, vocabulary, added): kind for mark, kind in marks.items()}
    letters = {letter for word in words for letter in word}
    states = sorted({word[:n] for word in words for n in range(len(word) + 1)}, key=len)
    number = {state: i for i, state in enumerate(states)}
    after = {(i, letter): number[_longest((*state, letter), number)] for i, state in enumerate(states)
             for letter in (*letters, OTHER)}  # fmt: skip
    kinds = [next((kind for word, kind in words.items() if state[-len(word) :] == word), 0) for state in states]

    def read(token: tuple[Letter, ...]) -> tuple[list[int], list[int]]:
        """The states after a token, and the marks that end in it, from every state."""
        ends, events = [], []
        for i in range(len(states)):
            if ends and after[i, token[0]] == after[0, token[0]]:  # nearly always: as from the start
                ends.append(ends[0])
                events.append(events[0])
                continue
            state, event = i, 0
            for letter in token:
                state = after[state, letter]
                event = kinds[state] or event
            ends.append(state)
            events.append(event)
        return ends, events

    nothing: tuple[Letter, ...] = (OTHER,)  # padding too, the last column
    tokens: dict[int, tuple[Letter, ...]] = dict.fromkeys(range(max(vocabulary.values()) + 2), nothing)
    tokens.update({letter: (letter,) for letter in letters if isinstance(letter, int)})
    if any(isinstance(letter, str) for letter in letters):
        ordinary = [i for token, i in vocabulary.items() if token not in added and tokens[i] is nothing]
        for i, text in zip(ordinary, _texts(tokenizer, ordinary), strict=True):
            tokens[i] = tuple(c if c in letters else OTHER for c in text) or nothing
    known = {token: read(token) for token in set(tokens.values())}
    ends, events = (torch.tensor([known[token][n] for token in tokens.values()]).T.contiguous() for n in (0, 1))
    return ends.to(torch.int16), events.to(torch.int8), max(map(len, words))


def _word(mark: str, vocabulary: dict[str, int], added: dict[str, int]) -> tuple[Letter, ...]:
    """A mark as letters: its id where it is a token, else the added tokens in it and the characters around them."""
    if mark in vocabulary:
        return (vocabulary[mark],)
    names = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    pieces = re.split(f"({names})", mark) if names else [mark]
    return tuple(letter for piece in pieces for letter in ([added[piece]] if piece in added else piece))


def _longest(word: tuple[Letter, ...], states: dict[tuple[Letter, ...], int]) -> tuple[Letter, ...]:
    """The longest end of a word that is a state."""
    return next(word[n:] for n in range(len(word) + 1) if word[n:] in states)


def _texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token in the middle of a text, where no decoder strips its space."""
    before = tokenizer.encode("a", add_special_tokens=False)
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    start = len(tokenizer.decode(before, **plain))
    return [text[start:] for text in tokenizer.batch_decode([[*before, i] for i in ids], **plain)]
