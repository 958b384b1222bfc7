"""The two sides of a contrast, in the ways in which they may be given."""

from typing import Any, NamedTuple

from steerfn.values import DataError


class Sides(NamedTuple):
    """The two sides of a contrast, and the sites at which they are read.

    Attributes:
        positive: texts that show the behaviour.
        negative: texts that show its opposite.
        sites: where to read.
        paired: False where a contrast set says that its sides are not pairs.
    """

    positive: Any
    negative: Any
    sites: Any
    paired: bool


def two_sides(positive: Any, negative: Any = None, sites: Any = None) -> Sides:
    """Both sides, from two lists of texts, a contrast set, or a list of pairs.

    A contrast set or pairs stand for both, so what follows them is the sites, as in
    `mean_difference(model, tokenizer, d, 14)`.

    Raises:
        DataError: one side without the other, a whole table, or a contrast set beside a second side.
    """
    paired = True
    if hasattr(positive, "positive") and hasattr(positive, "negative"):
        both, paired = (positive.positive, positive.negative), bool(getattr(positive, "paired", True))
    elif _is_pairs(positive):
        both = [pair[0] for pair in positive], [pair[1] for pair in positive]
    elif hasattr(positive, "columns") or hasattr(positive, "column_names"):
        raise DataError(
            f"positive is a table ({type(positive).__name__}); pass two of its columns, as positive=table['a'] and "
            "negative=table['b'], or sf.datasets.from_rows(table)."
        )
    elif negative is None:
        raise DataError(
            "negative is missing: pass texts that show the opposite of positive, or a contrast set or a list of "
            "(positive, negative) pairs in place of both."
        )
    else:
        both = positive, negative
        negative = None
    if negative is not None and sites is not None:
        raise DataError("positive is a contrast set or a list of pairs, which has both sides; leave negative out.")
    sites = negative if sites is None else sites
    return Sides(*both, sites, paired)


def _is_pairs(given: Any) -> bool:
    """Whether something is a list of two texts each; a conversation is a list of messages, which are dicts."""
    if not isinstance(given, (list, tuple)) or not given:
        return False
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_text, pair)) for pair in given)


def _is_text(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, (list, tuple)) and all(isinstance(m, dict) for m in given))
