"""How much of a text has been there before."""

import math
from collections.abc import Sequence

from steerfn.metrics._metric import metric
from steerfn.metrics._ngrams import ngrams


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
        DataError: `n` is no number from 1.

    Example:
        >>> import steerfn as sf
        >>> sf.metrics.repetition.using(n=1)(["so good so good so good", "good as new"])
        [0.6666666666666667, 0.0]
    """
    return [1 - len(set(found)) / len(found) if (found := ngrams(text, n)) else math.nan for text in texts]
