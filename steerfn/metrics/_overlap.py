"""How much of its reference a text shares: runs of words (bleu), runs of letters (chrf), words in order (rouge)."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from steerfn.metrics._metric import check_paired, metric
from steerfn.values import DataError, import_extra, integer


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
    score = _bleu().sentence_score
    return _score_each(texts, references, lambda text, reference: score(text, [reference]).score)


@functools.cache
def _bleu() -> Any:
    return import_extra("sacrebleu.metrics", "evaluate").BLEU(effective_order=True)


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
        DataError: not one reference for each text, or a word order that is not a non-negative integer.
        SteerError: sacrebleu is not installed (extra `evaluate`).

    Example:
        >>> import steerfn as sf
        >>> same, near, far = sf.metrics.chrf(["cats", "cat", "dog"], references=["cats"] * 3)
        >>> same > near > 50 > far
        True
    """
    word_order = integer("word_order", word_order, 0)
    score = import_extra("sacrebleu.metrics", "evaluate").CHRF(word_order=word_order).sentence_score
    return _score_each(texts, references, lambda text, reference: score(text, [reference]).score)


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
    if not isinstance(variant, str) or not re.fullmatch("rouge([1-9]|L|Lsum)", variant):
        raise DataError(f"variant must be 'rouge1' to 'rouge9', 'rougeL' or 'rougeLsum', not {variant!r:.80}.")
    score = import_extra("rouge_score.rouge_scorer", "evaluate").RougeScorer([variant]).score
    return _score_each(texts, references, lambda text, reference: score(reference, text)[variant].fmeasure)


def _score_each(texts: Sequence[str], references: Sequence[str], score: Callable[[str, str], float]) -> list[float]:
    """The score of each text against its reference; NaN where the reference is blank."""
    check_paired(texts, references=references)
    pairs = zip(texts, references, strict=True)
    return [float(score(text, reference)) if reference.strip() else math.nan for text, reference in pairs]
