"""How positive a text sounds: by VADER's rules, or by a scorer of our own."""

import functools
from collections.abc import Sequence
from typing import Any

from steerfn.metrics._classifier import probabilities
from steerfn.metrics._metric import metric
from steerfn.values import import_extra


@metric(
    unit="-1 to 1",
    about="VADER's compound score: words of praise and blame with rules for negation and emphasis; no irony, no "
    "feeling that is told without such words.",
)
def sentiment(texts: Sequence[str]) -> list[float]:
    """VADER's compound score of each text, from -1 (negative) over 0 (neutral) to 1 (positive).

    `compound = s / sqrt(s**2 + 15)` with `s` the sum of the valences of its words, changed by negations, intensifiers,
    capitals and exclamation marks (Hutto & Gilbert 2014, "VADER"). English only. It is light and deterministic; long
    texts saturate near 1 or -1, and a text without a word of its lexicon is 0. `sentiment_minilm` hears more of what
    is said without such words, and wants another package.

    Args:
        texts: what is judged.

    Returns:
        One score for each text; 0 for a blank one.

    Raises:
        SteerError: vaderSentiment is not installed (extra `evaluate`).

    Example:
        >>> import steerfn as sf
        >>> good, bad = sf.metrics.sentiment(["What a wonderful day!", "What a terrible day."])
        >>> good > 0 > bad
        True
    """
    vader = _vader()
    return [vader.polarity_scores(text)["compound"] for text in texts]


@functools.cache
def _vader() -> Any:
    return import_extra("vaderSentiment.vaderSentiment", "evaluate").SentimentIntensityAnalyzer()


@metric(
    unit="probability",
    about="Probability that a short text is positive rather than negative, by a small scorer that was fitted to "
    "sentences of film reviews; no neutral in between.",
)
def sentiment_minilm(texts: Sequence[str]) -> list[float]:
    """The probability that a text is positive, by a logistic regression on its MiniLM embedding.

    Fitted to sentences of film reviews (Pang & Lee 2005); the model card
    `steerfn/metrics/data/sentiment_minilm.md` says how it did on sentences that it had not seen, and on another kind
    of text. It knows only positive and negative: a neutral text gets some number between, not 0.5, so read
    differences, not levels. English only.

    Args:
        texts: what is judged; only the first 256 tokens of each.

    Returns:
        One probability for each text; 0.5 for a blank one, which is neither.

    Raises:
        SteerError: the MiniLM package is not installed (extra `minilm`).

    Example:
        >>> import steerfn as sf
        >>> good, bad = sf.metrics.sentiment_minilm(["A moving, beautifully acted film.", "A dull and lifeless mess."])
        >>> good > 0.5 > bad
        True
    """
    return probabilities("sentiment_minilm", texts)
