"""Bootstrap intervals: BCa from scipy, with tails that are right for few units."""

import math
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from steerfn.values import import_extra

BATCH = 2_000_000
"""Indices that are drawn at once: 16 MB."""
TAIL = 1e-6
"""The least part of a bootstrap distribution that is cut off on a side. Below it BCa's correction turns around, and
no number of resamples that anyone draws could tell."""
ROUNDING = 1e-12
"""Differences below this part of the numbers are rounding."""


def interval(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., Any],
    level: float,
    seed: int,
    resamples: int,
    scale: float = 0.0,
) -> tuple[float, float]:
    """The expanded BCa interval of a statistic; see `estimate`.

    Args:
        samples: one sample whose mean, or two whose ratio of means is the statistic; their units belong together.
        statistic: a function of the samples and an `axis`.
        scale: how far units may lie from each other where all are the same; see `around_a_constant`.

    Returns:
        Its ends; NaN for fewer than two units. They are never one and the same: see `around_a_constant`.
    """
    n = len(samples[0])
    if n < 2:
        return math.nan, math.nan
    if _constant(*samples):
        return around_a_constant(float(statistic(*samples)), n, level, scale)
    stats, special = import_extra("scipy.stats", "evaluate"), import_extra("scipy.special", "evaluate")
    t = float(special.stdtrit(n - 1, (1 + level) / 2))
    tail = max(TAIL, float(special.ndtr(-t * math.sqrt(n / (n - 1)))))
    # Where BCa is undefined scipy warns and says NaN; the same resamples then give the percentile interval.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            batch=max(1, BATCH // n),
            vectorized=True,
            paired=len(samples) > 1,
            confidence_level=1 - 2 * tail,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    ends = result.confidence_interval.low, result.confidence_interval.high
    if not np.isfinite(ends).all():
        # A mean in a denominator may be 0 in a resample: no number, and no end of an interval.
        known = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
        ends = np.quantile(known, (tail, 1 - tail)) if len(known) else (math.nan, math.nan)
    return float(ends[0]), float(ends[1])


def around_a_constant(value: float, n: int, level: float, scale: float = 0.0) -> tuple[float, float]:
    """The interval of a statistic whose `n` units are all the same: its value plus and minus `scale * q`.

    Units that are all the same do not say how far others may lie, and a bootstrap would say that none does. The share
    `q = z^2 / (n + z^2)` of others is not excluded (Wilson's limit for none of `n`); they are taken to lie as far off
    as `scale`: if it is 0, as 0 does from the value, or 1 where the value is 0.
    """
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    margin = (scale or abs(value) or 1.0) * z * z / (n + z * z)
    return value - margin, value + margin


def _constant(sample: np.ndarray, other: np.ndarray | None = None) -> bool:
    """Whether a mean, or the ratio of two means, is the same in every resample, but for rounding."""
    if other is None:
        return bool(np.ptp(sample) <= ROUNDING * np.abs(sample).max())
    off = np.abs(sample * other.sum() - other * sample.sum()).max()
    return bool(off <= ROUNDING * np.abs(sample).max() * np.abs(other).sum())
