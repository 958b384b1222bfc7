"""Metrics that count words: how long a text is, how varied, and how much of it has been there before."""

import math
from collections.abc import Sequence

from steerfn.metrics._metric import metric
from steerfn.values import positive_int


@metric(
    better="lower",
    unit="share",
    about="Share of the 4-grams of a text that occurred before in it: finds loops, not paraphrases, and tells nothing "
    "of texts below four words.",
)
def repetition(texts: Sequence[str], *, n: int = 4) -> list[float]:
    """The share of the n-grams of each text that have occurred before in the same text: `1 - distinct / all`.

    0 where every n-gram is new, near 1 for a text that loops. As the "seq-rep-n" of Welleck et al. 2020, "Neural Text
    Generation with Unlikelihood Training", with words (what white space separates) for tokens.

    Args:
        texts: what is measured.
        n: how many words in a row count as one.

    Returns:
        One share for each text; NaN for a text of fewer than `n` words, which has no n-gram.

    Raises:
        DataError: `n` is not a positive integer.

    Example:
        >>> import steerfn as sf
        >>> sf.metrics.repetition.using(n=1)(["so good so good so good", "good as new"])
        [0.6666666666666667, 0.0]
    """
    return [1 - distinct_share(text, n) for text in texts]


@metric(
    better="higher",
    unit="share",
    about="Share of the 2-grams of a text that differ from each other: variety within a text, not between texts; long "
    "texts have less of it anyway.",
)
def distinct_n(texts: Sequence[str], *, n: int = 2) -> list[float]:
    """The distinct n-grams of each text over all its n-grams.

    1 where all differ. Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", who
    divide by the number of words instead, over all texts together. Common words come back in any text, so it falls
    with length: compare texts of about one length.

    Args:
        texts: what is measured.
        n: how many words in a row count as one; words are what white space separates.

    Returns:
        One share for each text; NaN for a text of fewer than `n` words, which has no n-gram.

    Raises:
        DataError: `n` is not a positive integer.

    Example:
        >>> import steerfn as sf
        >>> sf.metrics.distinct_n(["so good so good", "as good as new"])
        [0.6666666666666666, 1.0]
    """
    return [distinct_share(text, n) for text in texts]


@metric(unit="words", about="Words of a text, as white space separates them; bounded by max_new_tokens.")
def length(texts: Sequence[str]) -> list[float]:
    """How many words each text has, words being what white space separates.

    It says whether steering makes a model talk more or fall silent. Texts that were cut off by `max_new_tokens` are as
    long as that allows.

    Args:
        texts: what is measured.

    Returns:
        One count for each text; 0 for a blank one.

    Example:
        >>> import steerfn as sf
        >>> sf.metrics.length(["So be it.", ""])
        [3.0, 0.0]
    """
    return [float(len(text.split())) for text in texts]


def distinct_share(text: str, n: int) -> float:
    """The distinct runs of `n` words over all of them, words being what white space separates; NaN below `n`.

    Raises:
        DataError: `n` is not a positive integer.

    Example:
        >>> distinct_share("so good so good", 2)
        0.6666666666666666
    """
    n = positive_int("n", n)
    words = text.split()
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan
