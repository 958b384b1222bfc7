"""The texts of a discovery: two sides, encoded once, and what is read of each."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from steerfn.run import Chat, Position, Read, as_texts, checked_chat, describe_reads, encode, position_name, reads
from steerfn.values import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Contrast:
    """Two sides of texts.

    Attributes:
        reads: what is read of each text, the positives first.
        positive: how many positives.
        paired: whether text i of either side belong together.
        about: for metadata: counts, position, chat, and the tokens read most often, by their text.
    """

    reads: Sequence[Read]
    positive: int
    paired: bool
    about: dict[str, Any]

    @property
    def negative(self) -> int:
        """How many negatives."""
        return len(self.reads) - self.positive


def contrast(
    tokenizer: Any,
    positive: Any,
    negative: Any,
    *,
    position: Position,
    chat: Chat,
    paired: bool,
    pairs: bool = True,
    explain: bool = False,
) -> Contrast:
    """Encode two sides of texts.

    Args:
        paired: whether pairs are needed.
        pairs: False where it is known that the sides are not pairs, even if they are equally long.
        explain: print which token is read.

    Raises:
        DataError: no texts on one side, an empty one, sides that are the same, unequal counts where pairs are needed,
            or a position outside a text.
    """
    checked_chat(chat)
    sides = {"positive": as_texts(positive, "positive"), "negative": as_texts(negative, "negative")}
    if sides["positive"] == sides["negative"]:
        raise DataError("positive and negative are the same texts, so their difference is zero; pass opposites.")
    counts = {name: len(texts) for name, texts in sides.items()}
    if paired and counts["positive"] != counts["negative"]:
        raise DataError(
            f"Pairs are needed, but there are {counts['positive']} positive and {counts['negative']} negative texts; "
            "give every positive text its negative, or use mean_difference, which takes unequal counts."
        )
    if paired and not pairs:
        raise DataError(
            "Pairs are needed, but this contrast set says that its sides are not pairs (paired=False); use "
            "mean_difference, or dataclasses.replace(d, paired=True) where text i of either side belong together."
        )
    rows = encode(tokenizer, [*sides["positive"], *sides["negative"]], chat)
    matched = counts["positive"] if pairs and counts["positive"] == counts["negative"] else None
    text_reads = reads(rows, position, matched)
    if explain:
        print(describe_reads(tokenizer, text_reads))
    about = {
        "counts": counts,
        "position": position_name(position),
        "chat": chat if isinstance(chat, bool | None) else json.loads(json.dumps(dict(chat), default=str)),
        "tokens_read": _tokens(tokenizer, text_reads),
    }
    return Contrast(text_reads, counts["positive"], matched is not None, about)


def _tokens(tokenizer: Any, text_reads: Sequence[Read]) -> dict[str, int] | str:
    """How often which token is read, by its text, the most frequent first."""
    if any(len(read.where) > 1 for read in text_reads):
        return "all"
    counted = collections.Counter(read.ids[read.where[0]] for read in text_reads)
    return {tokenizer.decode([token]): count for token, count in counted.most_common(8)}
