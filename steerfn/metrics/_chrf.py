"""How many of a text's letters and runs of letters are its reference's."""

import math
from collections.abc import Sequence
from typing import Any

from steerfn._errors import DataError
from steerfn._extra import import_extra
from steerfn.metrics._metric import metric
from steerfn.metrics._paired import check_paired


@metric(
    better="higher",
    unit="0 to 100",
    about="chrF against the reference: shared runs of letters, so that inflected words count in part. Unrelated texts "
    "of one language share some too.",
)
def chrf(texts: Sequence[str], *, references: Sequence[str], word_order: int = 0) -> list[float]:
    """The chrF of each text against its reference, from 0 (nothing shared) to 100 (the same).

    `100 (1 + b^2) P R / (b^2 P + R)` with `b = 2`, `P` the mean share of the text's letter n-grams (n from 1 to 6) that
    the reference has, and `R` the mean share of the reference's that the text has (Popovic 2015, "chrF"). As sacrebleu
    computes it, with sacrebleu's defaults. It needs no word boundaries, so it suits languages without them.

    Args:
        texts: what is measured.
        references: one for each text; in comparisons and sweeps the unsteered model's text.
        word_order: n-grams of words up to this count too; 2 is chrF++ (Popovic 2017).

    Returns:
        One score for each text: 0 for a blank one; NaN where the reference is blank.

    Raises:
        DataError: not one reference for each text, or a word order that is no number from 0.
        SteerError: sacrebleu is not installed (extra `evaluate`).

    Example:
        >>> import steerfn as sf
        >>> same, near, far = sf.metrics.chrf(["cats", "cat", "dog"], references=["cats"] * 3)
        >>> same > near > 50 > far
        True
    """
    check_paired(texts, references=references)
    score = _chrf(word_order).sentence_score
    return [
        float(score(text, [reference]).score) if reference.strip() else math.nan
        for text, reference in zip(texts, references, strict=True)
    ]


def _chrf(word_order: Any) -> Any:
    if isinstance(word_order, bool) or not isinstance(word_order, int) or word_order < 0:
        raise DataError(f"word_order is a number of words from 0, not {word_order!r}.")
    return import_extra("sacrebleu.metrics", "evaluate").CHRF(word_order=word_order)
