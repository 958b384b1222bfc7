"""How many of a text's words and runs of words are its reference's."""

import functools
import math
from collections.abc import Sequence
from typing import Any

from steerfn._extra import import_extra
from steerfn.metrics._metric import metric
from steerfn.metrics._paired import check_paired


@metric(
    better="higher",
    unit="0 to 100",
    about="Sentence BLEU against the reference: shared words and runs of words. A paraphrase scores low, and so does "
    "any change of topic.",
)
def bleu(texts: Sequence[str], *, references: Sequence[str]) -> list[float]:
    """The BLEU of each text against its reference, from 0 (nothing shared) to 100 (the same).

    `100 exp(min(0, 1 - r/c)) (p_1 p_2 p_3 p_4)^(1/4)` with `p_n` the share of the text's n-grams that the reference
    has, and `c`, `r` the lengths of the two (Papineni et al. 2002, "BLEU"). It is sacrebleu's sentence BLEU with
    sacrebleu's defaults (13a tokens, exponential smoothing, only the orders that a short text has). BLEU was made for
    corpora: single sentences are noisy, so look at means over many.

    Args:
        texts: what is measured.
        references: one for each text; in comparisons and sweeps the unsteered model's text.

    Returns:
        One score for each text: 0 for a blank one; NaN where the reference is blank.

    Raises:
        DataError: not one reference for each text.
        SteerError: sacrebleu is not installed (extra `evaluate`).

    Example:
        >>> import steerfn as sf
        >>> same, other = sf.metrics.bleu(["The cat sat.", "Dogs bark."], references=["The cat sat."] * 2)
        >>> same > 99 > 50 > other
        True
    """
    check_paired(texts, references=references)
    score = _bleu().sentence_score
    return [
        float(score(text, [reference]).score) if reference.strip() else math.nan
        for text, reference in zip(texts, references, strict=True)
    ]


@functools.cache
def _bleu() -> Any:
    return import_extra("sacrebleu.metrics", "evaluate").BLEU(effective_order=True)
