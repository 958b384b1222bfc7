"""How much of a reference's words, in their order, is in a text."""

import math
import re
from collections.abc import Sequence
from typing import Any

from steerfn._errors import DataError
from steerfn._extra import import_extra
from steerfn.metrics._metric import metric
from steerfn.metrics._paired import check_paired


@metric(
    better="higher",
    unit="F1",
    about="ROUGE-L against the reference: the longest sequence of words that both have, gaps allowed. Latin letters "
    "and digits only.",
)
def rouge(texts: Sequence[str], *, references: Sequence[str], variant: str = "rougeL") -> list[float]:
    """The ROUGE of each text against its reference, as F1: `2 P R / (P + R)`, from 0 to 1.

    For "rougeL" `P` and `R` are the length of the longest common subsequence of words over the length of the text and
    of the reference; for "rouge1", "rouge2", ... the shares of n-grams that both have (Lin 2004, "ROUGE"). As
    rouge-score computes it, without stemming. Its words are runs of a-z and 0-9: a text in other letters has none and
    scores 0.

    Args:
        texts: what is measured.
        references: one for each text; in comparisons and sweeps the unsteered model's text.
        variant: "rouge1" to "rouge9", "rougeL", or "rougeLsum" (line by line).

    Returns:
        One F1 for each text: 0 for a blank one; NaN where the reference is blank.

    Raises:
        DataError: not one reference for each text, or another variant.
        SteerError: rouge-score is not installed (extra `evaluate`).

    Example:
        >>> import steerfn as sf
        >>> sf.metrics.rouge(["the cat sat", "a dog ran"], references=["the cat sat"] * 2)
        [1.0, 0.0]
    """
    check_paired(texts, references=references)
    score = _scorer(variant).score
    return [
        float(score(reference, text)[variant].fmeasure) if reference.strip() else math.nan
        for text, reference in zip(texts, references, strict=True)
    ]


def _scorer(variant: Any) -> Any:
    if not isinstance(variant, str) or not re.fullmatch("rouge([1-9]|L|Lsum)", variant):
        raise DataError(f"variant is 'rouge1' to 'rouge9', 'rougeL' or 'rougeLsum', not {variant!r:.80}.")
    return import_extra("rouge_score.rouge_scorer", "evaluate").RougeScorer([variant])
