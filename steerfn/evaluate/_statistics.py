"""How sure a number is: intervals by bootstrap, paired tests by sign flips, and Holm's correction.

The unit is the prompt (or the item). Several texts of one prompt are not several observations: `by_prompt` averages
them first.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn._errors import DataError
from steerfn._numbers import plain_number
from steerfn.evaluate._bootstrap import ROUNDING, interval
from steerfn.evaluate._shown import percent, shown, shown_p
from steerfn.evaluate._sign_flip import sign_flip

RESAMPLES = 9999
"""Resamples of a bootstrap, and sign flips of a test."""
FEWEST = 99
"""With fewer an interval's ends would be extremes of a handful."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: the mean over the units.
        low: the lower end of the interval; NaN where there are fewer than two units.
        high: the upper end.
        n: how many units: prompts or items.
        level: how often such intervals cover the true mean.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{shown(self.mean)} (n = {self.n}, too few for an interval)"
        return f"{shown(self.mean)} ({percent(self.level)} CI {shown(self.low)} to {shown(self.high)}, n = {self.n})"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference, treatment minus control.

    Attributes:
        estimate: the mean of the units' differences, with its interval.
        p: of the two-sided sign-flip test that the differences are symmetric about 0.
        effect: `d_z`, the mean of the differences over their standard deviation; infinite where all are the same
            and not 0, NaN for fewer than two.
        n: how many units.
    """

    estimate: Estimate
    p: float
    effect: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate}, {shown_p(self.p)}, d_z = {shown(self.effect)}"


def estimate(values: Any, *, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean of some numbers with a bootstrap interval.

    The interval is BCa (bias-corrected and accelerated), from `scipy.stats.bootstrap`, and percentile where BCa is
    undefined, as it is for some tiny samples. A plain bootstrap is too narrow for few units, by the factor
    `z sqrt((n - 1) / n) / t_{n-1}`; the tails cut off are therefore `Phi(-sqrt(n / (n - 1)) t)` on each side, with `t`
    the quantile of Student's distribution at the level asked for ("expanded" intervals). Values that are all the
    same have an interval of no width, and a single value has none.

    Args:
        values: the numbers, one for each unit.
        level: how often such intervals cover the true mean, between 0 and 1.
        seed: of the resampling.
        resamples: how many resamples, from 99.

    Raises:
        DataError: no values, a value that is NaN or infinite, or an option out of range.
        SteerError: scipy is not installed.

    Source: Efron 1987, "Better Bootstrap Confidence Intervals"; Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", section 5.3, for the expanded tails.

    Example:
        >>> from steerfn.evaluate import estimate
        >>> print(estimate([3, 3, 3, 3]))
        3 (95 % CI 3 to 3, n = 4)
    """
    checked_options(level, seed, resamples)
    numbers = _numbers(values, "values")
    low, high = interval((numbers,), _mean, level, seed, resamples)
    return Estimate(float(numbers.mean()), low, high, len(numbers), level)


def paired(
    treatment: Any, control: Any, *, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """The difference of two conditions on the same units, tested by flipping the signs of the units' differences.

    With `d_i = treatment_i - control_i`: if neither condition is different, `d_i` and `-d_i` are as likely. `p` is the
    part of all sign patterns `s` with `|sum s_i d_i| >= |sum d_i|`. All `2^n` patterns are tried where they are no more
    than `resamples`; else `resamples` random ones, the observed pattern counted among them.

    Args:
        treatment: one number for each unit, averaged over seeds already (`by_prompt`).
        control: the same of the control, in the same order.
        level: of the interval.
        seed: of the resampling and the flips.
        resamples: how many resamples and flips, from 99.

    Raises:
        DataError: none, different counts, NaN or infinite numbers, or an option out of range.
        SteerError: scipy is not installed.

    Source: Fisher 1935, "The Design of Experiments", section 21; Phipson & Smyth 2010, "Permutation P-values Should
    Never Be Zero".

    Example:
        >>> from steerfn.evaluate import paired
        >>> print(paired([2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6]))
        1 (95 % CI 1 to 1, n = 6), p = 0.031, d_z = inf
    """
    first, second = _numbers(treatment, "treatment"), _numbers(control, "control")
    if len(first) != len(second):
        raise DataError(
            f"There are {len(first)} numbers of the treatment and {len(second)} of the control; a paired difference "
            "needs both for each unit."
        )
    differences = first - second
    # What two equal numbers differ by after averaging would otherwise be an effect of infinite size.
    differences[np.abs(differences) <= ROUNDING * np.maximum(np.abs(first), np.abs(second))] = 0.0
    found = estimate(differences, level=level, seed=seed, resamples=resamples)
    return Difference(found, sign_flip(differences, seed, resamples), _effect(differences), len(differences))


def ratio(treatment: Any, control: Any, *, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The change of a mean in percent, `100 (mean(treatment) / mean(control) - 1)`, on the same units.

    Both means are resampled together, so the interval knows that the control's mean is uncertain too.

    Raises:
        DataError: as `paired`, or a control's mean of 0.
        SteerError: scipy is not installed.

    Example:
        >>> from steerfn.evaluate import ratio
        >>> print(ratio([2, 4, 6], [1, 2, 3]))
        100 (95 % CI 100 to 100, n = 3)
    """
    checked_options(level, seed, resamples)
    first, second = _numbers(treatment, "treatment"), _numbers(control, "control")
    if len(first) != len(second):
        raise DataError(f"There are {len(first)} numbers of the treatment and {len(second)} of the control.")
    if second.mean() == 0:
        raise DataError("A change in percent needs a control whose mean is not 0; take the difference instead.")
    found = float(_change(first, second))
    low, high = interval((first, second), _change, level, seed, resamples)
    return Estimate(found, low, high, len(first), level)


def proportion(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A proportion with Wilson's interval, `(p + z^2/2n +- z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n)`.

    Args:
        successes: how many of the units.
        n: how many units.
        level: how often such intervals cover the true proportion.

    Raises:
        DataError: no units, more successes than units, or a level outside 0 to 1.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    Example:
        >>> from steerfn.evaluate import proportion
        >>> print(proportion(8, 10))
        0.8 (95 % CI 0.49 to 0.943, n = 10)
    """
    checked_options(level)
    counts = (successes, n)
    if not all(isinstance(each, (int, np.integer)) and not isinstance(each, bool) for each in counts) or not (
        0 <= successes <= n and n >= 1
    ):
        raise DataError(f"A proportion is a number of successes out of n from 1, not {successes!r} of {n!r}.")
    p, z = successes / n, statistics.NormalDist().inv_cdf((1 + level) / 2)
    middle, wide = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not leave the range of proportions at its ends.
    return Estimate(p, max(0.0, (middle - wide) / scale), min(1.0, (middle + wide) / scale), int(n), level)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: `max over j <= i of min(1, (m - j) p_(j))`, with `p_(0) <= p_(1) <= ...`.

    Calling those significant that stay below `a` makes a false claim in at most a part `a` of families, however the
    tests depend on each other.

    Raises:
        DataError: a number that is no probability.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".

    Example:
        >>> from steerfn.evaluate import holm
        >>> holm([0.25, 0.01, 0.04])
        [0.25, 0.03, 0.08]
    """
    found = [float(p) for p in p_values]
    if wrong := [p for p in found if not 0 <= p <= 1]:
        raise DataError(f"A p-value is a number from 0 to 1, not {wrong[0]}.")
    order = sorted(range(len(found)), key=found.__getitem__)
    adjusted, highest = [0.0] * len(found), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(found) - rank) * found[i]))
        adjusted[i] = highest
    return adjusted


def by_prompt(values: Any, prompts: Sequence[Any]) -> np.ndarray:
    """The mean over the entries of the same prompt, in the order in which prompts first appear.

    Entries that are NaN are left out; a prompt that has no others is NaN.

    Args:
        values: one number for each entry.
        prompts: which prompt each entry belongs to: its text, or its index.

    Raises:
        DataError: another number of prompts than of values.

    Example:
        >>> from steerfn.evaluate import by_prompt
        >>> by_prompt([1.0, 2.0, 3.0], ["a", "b", "a"]).tolist()
        [2.0, 2.0]
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (len(prompts),):
        raise DataError(f"There are values of shape {numbers.shape} for {len(prompts)} prompts; pass one for each.")
    order: dict[str, int] = {}
    which = np.array([order.setdefault(repr(prompt), len(order)) for prompt in prompts], dtype=np.intp)
    known = ~np.isnan(numbers)
    sums = np.bincount(which[known], numbers[known], minlength=len(order))
    counts = np.bincount(which[known], minlength=len(order))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def checked_options(level: Any = 0.95, seed: Any = 0, resamples: Any = RESAMPLES) -> None:
    """Refuse options that no interval can be made with.

    Raises:
        DataError: a level outside 0 to 1, a seed that is no int from 0, fewer than 99 resamples.
    """
    level = plain_number(level)
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise DataError(f"level is a number between 0 and 1, such as 0.95, not {level!r}.")
    seed = plain_number(seed)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"seed is an int from 0, not {seed!r}.")
    resamples = plain_number(resamples)
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < FEWEST:
        raise DataError(f"resamples is a number of resamples from {FEWEST}, not {resamples!r}.")


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what} are numbers, one for each unit, not {values!r:.80}.") from None
    if numbers.ndim != 1 or not len(numbers):
        raise DataError(f"{what} are numbers, one for each unit and at least one, not an array of {numbers.shape}.")
    if not np.isfinite(numbers).all():
        where = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(f"{what}[{where}] is {numbers[where]}; leave out units without a number first.")
    return numbers


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(values, axis=axis)


def _change(treatment: np.ndarray, control: np.ndarray, axis: int = -1) -> np.ndarray:
    return 100 * (np.mean(treatment, axis=axis) / np.mean(control, axis=axis) - 1)


def _effect(differences: np.ndarray) -> float:
    if len(differences) < 2:
        return math.nan
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= ROUNDING * abs(mean):
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return mean / spread
