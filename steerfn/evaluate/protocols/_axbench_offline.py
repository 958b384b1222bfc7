"""An offline stand-in for AxBench's judge: three small scorers with fixed cuts. It is no language model.

What its ratings share with those of AxBench is the scale and nothing else: never compare them with published figures.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn.metrics._metric import Setting, as_metrics, measure

OFFLINE = "offline"
CONCEPT = (0.15, 0.25)
"""Cosines of a text with the concept's description from which a rating is 1, and 2. Of AxBench's own texts
those without a concept seldom reach the second; of those with it many do not either, and some reach neither."""
ANSWERED = (1 / 3, 2 / 3)
"""Probabilities of `helpfulness` from which a rating is 1, and 2."""
PERPLEXITY = (20.0, 60.0)
"""Perplexities up to which a rating is 2, and 1."""
REPEATED = (0.2, 0.5)
"""Shares of repeated 4-grams up to which a rating is 2, and 1."""
METRICS = ("semantic_similarity", "helpfulness", "perplexity", "repetition")


def offline(texts: Sequence[str], concept: str, setting: Setting) -> np.ndarray:
    """Ratings 0, 1 or 2 of the concept, the instruction and the fluency, `[texts, 3]`.

    - concept: the cosine of the text's MiniLM embedding with that of the concept's description: below 0.15 it is 0,
      from 0.25 it is 2. A text that speaks *about* the concept's topic and one that shows it are alike to it;
    - instruction: `helpfulness`, the probability that the text answers its prompt, in thirds;
    - fluency: the lower of the ratings of `perplexity` under the unsteered model (2 up to 20, 1 up to 60) and of
      `repetition` (2 up to 0.2, 1 up to 0.5).

    A text without a number, such as an empty one, gets 0. Perplexity tells fluent from broken among a model's own texts
    alone: a person's sentence is often as unexpected to a small model as broken ones are.
    """
    asked = dataclasses.replace(setting, references=[concept] * len(texts))
    found = measure(as_metrics(list(METRICS)), texts, asked)
    return np.stack(
        [
            reached(found["semantic_similarity"], CONCEPT),
            reached(found["helpfulness"], ANSWERED),
            np.minimum(within(found["perplexity"], PERPLEXITY), within(found["repetition"], REPEATED)),
        ],
        axis=1,
    )


def reached(values: Any, cuts: Sequence[float]) -> np.ndarray:
    """How many of the ascending cuts each value reaches; 0 for NaN.

    Example:
        >>> reached([0.1, 0.2, 0.9], (0.2, 0.5)).tolist()
        [0.0, 1.0, 2.0]
    """
    found = np.asarray(values, dtype=np.float64)
    return sum(((found >= cut).astype(np.float64) for cut in cuts), np.zeros(found.shape))


def within(values: Any, cuts: Sequence[float]) -> np.ndarray:
    """How many of the cuts each value stays within; 0 for NaN.

    Example:
        >>> within([10, 30, 90], (20, 60)).tolist()
        [2.0, 1.0, 0.0]
    """
    found = np.asarray(values, dtype=np.float64)
    return sum(((found <= cut).astype(np.float64) for cut in cuts), np.zeros(found.shape))
