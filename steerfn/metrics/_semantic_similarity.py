"""How close a text's meaning is to its reference's."""

import os
from collections.abc import Sequence

import numpy as np

from steerfn.metrics._encoder import MINILM
from steerfn.metrics._encoder import encoder as encoder_of
from steerfn.metrics._metric import check_paired, metric


@metric(
    better="higher",
    unit="cosine",
    about="Cosine of the sentence embeddings of a text and its reference: about the same things, not equally true.",
)
def semantic_similarity(
    texts: Sequence[str], *, references: Sequence[str], encoder: str | os.PathLike[str] = MINILM
) -> list[float]:
    """The cosine of the embeddings of each text and its reference: `e(text) . e(reference)`, from -1 to 1.

    Two texts about one thing are near 0.5 to 0.9, unrelated ones near 0 to 0.2 (MiniLM). It hears the topic, and hardly
    a negation, a number or who did what to whom; what comes after the encoder's 256 tokens it does not see. Reimers &
    Gurevych 2019, "Sentence-BERT".

    Args:
        texts: what is judged.
        references: one for each text; in comparisons the unsteered model's text.
        encoder: "minilm", a folder, or a hub name of a sentence encoder with mean pooling.

    Returns:
        One cosine for each text; NaN where the text or its reference is blank.

    Raises:
        DataError: not one reference for each text.
        SteerError: the MiniLM package is not installed (extra `minilm`).
        ModelError: an encoder that cannot be had, or that does not take the mean of its tokens.

    Example:
        >>> import steerfn as sf
        >>> near, far = sf.metrics.semantic_similarity(
        ...     ["The cat sat on the mat.", "Shares fell on Monday."], references=["A cat is sitting on a mat."] * 2
        ... )
        >>> near > 0.8 > 0.3 > far
        True
    """
    check_paired(texts, references=references)
    embed = encoder_of(encoder)
    both = embed([*texts, *references])  # in one go, for batches of one length
    cosines = np.einsum("nd,nd->n", both[: len(texts)], both[len(texts) :]).astype(np.float64)
    blank = [not text.strip() or not reference.strip() for text, reference in zip(texts, references, strict=True)]
    cosines[np.array(blank, dtype=bool)] = np.nan
    return cosines.clip(-1, 1).tolist()
