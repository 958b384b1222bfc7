"""Whether a number is one more of some others: a vector's effect, among those of random vectors."""

import math
from collections.abc import Iterable

import numpy as np

from steerfn.evaluate._bootstrap import ROUNDING
from steerfn.values import DataError, import_extra, public


@public
def crawford_howell(value: float, others: Iterable[float], noise: float = 0.0) -> float:
    """The p-value of a two-sided test that a number comes from where some others come from.

    `t = (value - mean) / (s sqrt(1 + 1/k))` with the mean and standard deviation `s` of `k` others, and Student's
    distribution with `k - 1` degrees of freedom: for a steering vector, its mean effect among those of random vectors.
    `compare_vectors` and the protocols do not use it: where the numbers behind each mean are at hand, `against_random`
    knows how much of `s` is noise.

    Args:
        value: the number.
        others: the other numbers, at least two. Taken to be about normally distributed.
        noise: the standard error that each number has anyway; `s` is taken to be no less.

    Returns:
        p; where all others are the same and there is no noise, 1 if the value is that too and 0 if not.

    Raises:
        DataError: fewer than two others, or something that is no finite number.
        SteerError: scipy is not installed.

    Source: Crawford & Howell 1998, "Comparing an Individual's Test Score Against Norms Derived from Small Samples".

    Example:
        >>> from steerfn.evaluate import crawford_howell
        >>> round(crawford_howell(3.0, [0.0, 1.0, 0.5, 0.2, 0.8]), 3)
        0.005
    """
    try:
        numbers = np.array([value, *others], dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.array([])
    if numbers.ndim != 1 or len(numbers) < 3 or not np.isfinite(numbers).all():
        raise DataError(
            f"The test compares a number with at least two others, all finite, not {value!r:.80} with {others!r:.80}."
        )
    special = import_extra("scipy.special", "evaluate")
    rest, k = numbers[1:], len(numbers) - 1
    off, spread = abs(float(numbers[0] - rest.mean())), max(float(rest.std(ddof=1)), noise)
    rounding = ROUNDING * float(np.abs(numbers).max())
    if spread <= rounding:
        return 1.0 if off <= rounding else 0.0
    return float(2 * special.stdtr(k - 1, -off / (spread * math.sqrt(1 + 1 / k))))
