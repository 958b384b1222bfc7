"""How varied a text is."""

import math
from collections.abc import Sequence

from steerfn.metrics._metric import metric
from steerfn.metrics._ngrams import ngrams


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
        DataError: `n` is no number from 1.

    Example:
        >>> import steerfn as sf
        >>> sf.metrics.distinct_n(["so good so good", "as good as new"])
        [0.6666666666666666, 1.0]
    """
    return [len(set(found)) / len(found) if (found := ngrams(text, n)) else math.nan for text in texts]
