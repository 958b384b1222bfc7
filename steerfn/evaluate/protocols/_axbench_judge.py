"""AxBench's three questions of a text, whoever answers them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steerfn._errors import DataError
from steerfn._text import Text
from steerfn.evaluate.protocols._axbench_offline import OFFLINE, offline
from steerfn.metrics import AXBENCH, Metric
from steerfn.metrics import judge as judge_by
from steerfn.metrics._metric import Setting, as_metrics, measure

PARTS = ("concept", "instruction", "fluency")
"""Is the concept in the text, does the text do what the prompt asks, does it read well: 0, 1 or 2 each."""
BEST = 2.0

Judge = str | Mapping[str, Any] | Callable[[Sequence[str], Sequence[Text]], Any]


def harmonic(ratings: Any) -> np.ndarray:
    """The harmonic mean of ratings along the last axis, `n / sum 1/r`; 0 where one of them is 0.

    Source: Wu et al. 2025, "AxBench".

    Example:
        >>> harmonic([[2, 2, 2], [1, 2, 2], [0, 2, 2]]).tolist()
        [2.0, 1.5, 0.0]
    """
    rated = np.asarray(ratings, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where((rated == 0).any(-1), 0.0, rated.shape[-1] / (1 / rated).sum(-1))


def axbench_judge(ask: Callable[[Any], Any], concept: str, *, batched: bool = False) -> dict[str, Metric]:
    """A language model as AxBench's judge: `sf.metrics.judge` with the templates of `sf.metrics.AXBENCH`.

    Args:
        ask: takes a question and gives the answer: `sf.metrics.endpoint(...)`, or any function.
        concept: what the vector stands for, in words.
        batched: `ask` takes the list of all questions.

    Returns:
        What `axbench(judge=...)` takes.

    Raises:
        DataError: no concept, or an `ask` that cannot be called.

    Source: Wu et al. 2025, "AxBench"; the questions are in words of our own.

    Example:
        >>> import steerfn as sf
        >>> judge = sf.protocols.axbench_judge(lambda question: "Rating: [[1]]", "rental services")
        >>> judge["fluency"](["Some text."])
        [1.0]
    """
    options: dict[str, Any] = {"scale": (0.0, BEST), "batched": batched}
    made = {part: functools.partial(judge_by, ask, AXBENCH[part], part, **options) for part in PARTS}
    return {part: make(concept=concept) if part == "concept" else make() for part, make in made.items()}


def ratings_of(judge: Judge, concept: str, texts: Sequence[str], setting: Setting) -> np.ndarray:
    """The three ratings of each text, `[texts, 3]`; NaN where the judge gave none.

    Raises:
        DataError: a judge that is none, or ratings outside 0 to 2.
    """
    if isinstance(judge, str):
        if judge != OFFLINE:
            raise DataError(
                f"judge is 'offline', a mapping of {', '.join(PARTS)} to metrics, or a function, not {judge!r}."
            )
        found = offline(texts, concept, setting)
    elif isinstance(judge, Mapping):
        if set(judge) != set(PARTS):
            raise DataError(
                f"judge has the keys {', '.join(map(str, judge))}; it needs a metric for each of {', '.join(PARTS)}."
            )
        metrics = {part: as_metrics([judge[part]]) for part in PARTS}
        found = np.stack([next(iter(measure(metrics[part], texts, setting).values())) for part in PARTS], axis=1)
    elif callable(judge):
        found = judge(texts, list(setting.prompts or ()))
    else:
        raise DataError(
            f"judge is 'offline', a mapping of {', '.join(PARTS)} to metrics, or a function, not {judge!r:.80}."
        )
    return _checked(found, len(texts))


def _checked(found: Any, texts: int) -> np.ndarray:
    try:
        rated = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"The judge must give three numbers for each text, not {found!r:.80}.") from None
    if rated.shape != (texts, len(PARTS)):
        raise DataError(
            f"The judge gave numbers of shape {rated.shape} for {texts} texts; it must give {len(PARTS)} for each: "
            f"{', '.join(PARTS)}."
        )
    off = rated[~np.isnan(rated) & ((rated < 0) | (rated > BEST))]
    if len(off):
        raise DataError(f"The judge gave a rating of {off[0]:g}; ratings are 0, 1 or 2.")
    return rated


def named(judge: Judge) -> str:
    """What a judge is called."""
    if isinstance(judge, Mapping):
        metrics = {part: next(iter(as_metrics([judge[part]]).values())) for part in PARTS}
        return "; ".join(f"{part}: {each.name}. {each.about}".rstrip(". ") for part, each in metrics.items())
    return judge if isinstance(judge, str) else getattr(judge, "__name__", type(judge).__name__)
