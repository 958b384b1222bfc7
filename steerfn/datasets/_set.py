"""A contrast set as a value: two sides of texts, whether they pair up, and where they come from."""

import dataclasses
import operator
from collections.abc import Iterable
from typing import Any

from steerfn.datasets._folds import describe_texts
from steerfn.datasets._held_out import held_out_indices
from steerfn.output import enumeration, quantity
from steerfn.run import Text, as_texts
from steerfn.values import DataError, finite_number, integer, public

ITEM_KEYS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
"""What an item has at least: a question, the answer that shows the behaviour, and one that does not."""


@public
@dataclasses.dataclass(frozen=True, repr=False)
class ContrastSet:
    """Texts that show a behaviour (`positive`) and texts that show its opposite (`negative`).

    A value: frozen, compared by its content. Any two lists of texts make one, and every discovery method takes
    its two sides: `sf.mean_difference(model, tokenizer, positive=d.positive, negative=d.negative, sites=14)`.

    Attributes:
        name: what to call it.
        positive: texts, or conversations as lists of messages with role and content; at least one.
        negative: the same for the other side.
        paired: whether `positive[i]` and `negative[i]` belong together, so that the sides are equally long.
        items: nothing, or one dict a pair with the keys `question`, `answer_matching_behavior` and
            `answer_not_matching_behavior`, as the file of questions had it.
        description: one sentence on what the contrast is.
        source: where the texts come from.

    Raises:
        DataError: an empty side or text, pairs of unequal counts, or items that do not match the pairs.

    Example:
        >>> import steerfn as sf
        >>> d = sf.datasets.ContrastSet("mood", ["What a lovely day."], ["What an awful day."], paired=True)
        >>> d, len(d), d.positive[0]
        (ContrastSet('mood', 1 pair), 1, 'What a lovely day.')
    """

    name: str
    positive: tuple[Text, ...]
    negative: tuple[Text, ...]
    paired: bool = False
    items: tuple[dict[str, Any], ...] = ()
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for side in ("positive", "negative"):
            object.__setattr__(self, side, tuple(as_texts(getattr(self, side), side)))
        object.__setattr__(self, "items", tuple(self.items))
        counts = len(self.positive), len(self.negative)
        if self.paired and counts[0] != counts[1]:
            raise DataError(
                f"{counts[0]} positive and {counts[1]} negative texts are not pairs; give each text its opposite, or "
                "pass paired=False."
            )
        if self.items and (not self.paired or len(self.items) != counts[0]):
            raise DataError(
                f"{len(self.items)} items do not match {self._counts()}; pass one item a pair, and paired=True."
            )
        for i, item in enumerate(self.items):
            missing = [key for key in ITEM_KEYS if not isinstance(item, dict) or not isinstance(item.get(key), str)]
            if missing:
                raise DataError(
                    f"items[{i}] has no text for {', '.join(missing)}; pass dicts with {enumeration(ITEM_KEYS)}."
                )

    def __hash__(self) -> int:
        # Not of the content, which may hold lists and dicts; equal sets still have equal hashes.
        return hash((self.name, len(self.positive), len(self.negative), self.paired))

    def __len__(self) -> int:
        return max(len(self.positive), len(self.negative))

    def __repr__(self) -> str:
        return f"ContrastSet({self.name!r}, {self._counts()}{' with items' if self.items else ''})"

    def _counts(self) -> str:
        if self.paired:
            return quantity(len(self), "pair")
        return f"{len(self.positive)} positive, {len(self.negative)} negative"

    def split(self, held_out: float = 0.25, seed: int = 0, *, groups: Any = None) -> "tuple[ContrastSet, ContrastSet]":
        """A set to find a direction on, and a set to test it on, with no text in both.

        Pairs stay together; without pairs each side is divided in the same proportion. Texts that are the same but
        for case and white space land on the same side, and so do pairs that share a text. The division depends on
        the texts and the seed, not on their order, and is the same on every machine.

        Args:
            held_out: the part to hold out, between 0 and 1; at least one example is held out and one kept.
            seed: another seed, another division.
            groups: which texts are of one kind (the answers of one question): a label for each pair, or for each text,
                the positives first. A group is never in both sets.

        Returns:
            `(train, test)`, each in the order of this set.

        Raises:
            DataError: a part outside (0, 1), a seed that is not an integer, or too few different examples to divide.

        Example:
            >>> import steerfn as sf
            >>> train, test = sf.datasets.load("formality").split(held_out=0.25)
            >>> len(train), len(test), set(train.positive) & set(test.positive)
            (36, 12, set())
        """
        held_out = finite_number("held_out", held_out, above=0, below=1)
        seed = integer("seed", seed)
        units = describe_texts((len(self.positive), len(self.negative)), groups=groups, paired=self.paired).units
        chosen = held_out_indices(self.positive, self.negative, units, held_out, seed)
        if chosen is None:
            raise DataError(
                f"{self!r} cannot be split with {held_out:g} held out: it has too few examples that share no text; "
                "add different ones, or remove repeated texts (sf.discover.lint_pairs shows them)."
            )
        parts = []
        for word, is_test in (("train", False), ("test", True)):
            kept = [
                [i for i in range(len(side)) if (i in out) is is_test]
                for side, out in zip((self.positive, self.negative), chosen, strict=True)
            ]
            parts.append(dataclasses.replace(self.subset(kept[0], kept[1]), name=f"{self.name}/{word}"))
        return parts[0], parts[1]

    def subset(self, indices: Iterable[int], negative: Iterable[int] | None = None) -> "ContrastSet":
        """The set of some examples, in the order asked for.

        Args:
            indices: which pairs; without pairs, which positive texts.
            negative: which negative texts, for a set without pairs; the same indices if left out.

        Raises:
            DataError: no index, one that is out of range, or other indices for the negative side of pairs.

        Example:
            >>> import steerfn as sf
            >>> sf.datasets.load("formality").subset(range(10))
            ContrastSet('formality', 10 pairs)
        """
        left = _indices(indices, len(self.positive), "positive")
        right = _indices(left if negative is None else negative, len(self.negative), "negative")
        if self.paired and left != right:
            raise DataError("The negative texts of pairs go with the positive ones; leave out negative=.")
        return dataclasses.replace(
            self,
            positive=tuple(self.positive[i] for i in left),
            negative=tuple(self.negative[i] for i in right),
            items=tuple(self.items[i] for i in left) if self.items else (),
        )


def _indices(indices: Any, count: int, side: str) -> list[int]:
    try:
        numbers = [operator.index(i) for i in indices]
    except TypeError:
        raise DataError(f"indices must be a list of ints or a range, not {indices!r:.80}.") from None
    if not numbers:
        raise DataError("A subset needs at least one index, but there are none.")
    for i in numbers:
        if not -count <= i < count:
            raise DataError(f"Index {i} is outside the {count} {side} texts; pass indices from 0 to {count - 1}.")
    return [i % count for i in numbers]
