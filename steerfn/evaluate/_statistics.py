"""How sure a number is: intervals by bootstrap, paired tests by sign flips, and Holm's correction.

The unit is the prompt (or the item). Several texts of one prompt are not several observations: `by_prompt` averages
them first.
"""

import dataclasses
import math
import statistics
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from steerfn.evaluate._bootstrap import ROUNDING, interval
from steerfn.evaluate._sign_flip import sign_flip
from steerfn.output import Record, format_number, format_p, percent
from steerfn.values import (
    DataError,
    as_integer,
    finite_number,
    import_extra,
    integer,
    number_groups,
    public,
)

RESAMPLES = 9999
"""Resamples of a bootstrap, and sign flips of a test."""
FEWEST = 99
"""With fewer an interval's ends would be extremes of a handful."""


@dataclasses.dataclass(frozen=True)
class Estimate(Record):
    """A mean and its interval; see `estimate`.

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
            return f"{format_number(self.mean)} (n = {self.n}, too few for an interval)"
        ends = f"{format_number(self.low)} to {format_number(self.high)}"
        return f"{format_number(self.mean)} ({percent(self.level)} CI {ends}, n = {self.n})"


@dataclasses.dataclass(frozen=True)
class Difference(Record):
    """A paired difference, treatment minus control; see `paired`.

    Attributes:
        estimate: the mean of the units' differences, with its interval.
        p: of the two-sided sign-flip test that the differences are symmetric about 0.
        effect: `d_z`, the mean of the differences over their standard deviation; infinite where all are the same
            and not 0, NaN for fewer than two.
        n: how many units.
        left_out: units that have no number under one of the two conditions.
    """

    estimate: Estimate
    p: float
    effect: float
    n: int
    left_out: int = 0

    def __str__(self) -> str:
        return f"{self.estimate}, {format_p(self.p)}, d_z = {format_number(self.effect)}"


@public
def estimate(
    values: Iterable[float],
    *,
    groups: Iterable[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean of some numbers with an interval: Wilson's where all are 0 or 1 (`proportion`), else by bootstrap.

    The bootstrap interval is BCa (bias-corrected and accelerated), from `scipy.stats.bootstrap`, and percentile where
    BCa is undefined, as it is for some tiny samples. A plain bootstrap is too narrow for few units, by the factor `z
    sqrt((n - 1) / n) / t_{n-1}`; the tails cut off are therefore `Phi(-sqrt(n / (n - 1)) t)` on each side, with `t` the
    quantile of Student's distribution at the level asked for ("expanded" intervals).

    No interval has width 0: that all units of a sample have one value `c` does not show that all others have it. Such
    an interval is `c` plus and minus `|c| z^2 / (n + z^2)`, or `z^2 / (n + z^2)` where `c` is 0. A single value has no
    interval.

    Args:
        values: the numbers, one for each unit.
        groups: a label for each number, where several belong together (the answers of one question): their mean is
            one unit, and `n` counts groups.
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
        >>> print(estimate([0] * 8))
        0 (95 % CI 0 to 0.324, n = 8)
    """
    check_options(level, seed, resamples)
    numbers = _by_group(_numbers(values, "values"), groups)
    if _is_binary(numbers) and len(numbers) > 1:
        return proportion(int(numbers.sum()), len(numbers), level)
    low, high = interval((numbers,), _mean, level, seed, resamples)
    return Estimate(float(numbers.mean()), low, high, len(numbers), level)


@public
def paired(
    treatment: Iterable[float],
    control: Iterable[float],
    *,
    groups: Iterable[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """The difference of two conditions on the same units, tested by flipping the signs of the units' differences.

    With `d_i = treatment_i - control_i`: if the conditions do not differ, `d_i` and `-d_i` are as likely. `p` is the
    part of all sign patterns `s` with `|sum s_i d_i| >= |sum d_i|`. All `2^n` patterns are tried where they are no more
    than `resamples`; else `resamples` random ones, the observed pattern counted among them.

    The interval is that of `estimate`. Where both conditions are 0 or 1 in every unit it is Bonett and Price's: with
    `b` units that only the treatment has and `c` that only the control has, `p = (b + 1) / (n + 2)` and
    `q = (c + 1) / (n + 2)`, it is `p - q` plus and minus `z sqrt((p + q - (p - q)^2) / (n + 2))`.

    Args:
        treatment: one number for each unit, averaged over seeds already (`by_prompt`).
        control: the same of the control, in the same order.
        groups: a label for each unit, where several belong together (the answers of one question): their mean
            difference is one unit, so that signs are flipped, and units resampled, by group.
        level: of the interval.
        seed: of the resampling and the flips.
        resamples: how many resamples and flips, from 99.

    Raises:
        DataError: none, different counts, NaN or infinite numbers, or an option out of range.
        SteerError: scipy is not installed.

    Source: Fisher 1935, "The Design of Experiments", section 21; Phipson & Smyth 2010, "Permutation P-values Should
    Never Be Zero"; Bonett & Price 2012, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions
    Based on Paired Data".

    Example:
        >>> from steerfn.evaluate import paired
        >>> print(paired([1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0]))
        0.875 (95 % CI 0.303 to 1, n = 8), p = 0.016, d_z = 2.47
    """
    first, second = _both(treatment, control)
    differences = first - second
    # What two equal numbers differ by after averaging would otherwise be an effect of infinite size.
    differences[np.abs(differences) <= ROUNDING * np.maximum(np.abs(first), np.abs(second))] = 0.0
    check_options(level, seed, resamples)
    differences = _by_group(differences, groups)
    n = len(differences)
    if groups is None and n > 1 and _is_binary(first) and _is_binary(second):
        low, high = _of_two_shares(differences, level)
    else:
        low, high = interval((differences,), _mean, level, seed, resamples)
    estimated = Estimate(float(differences.mean()), low, high, n, level)
    return Difference(estimated, sign_flip(differences, seed, resamples), _effect(differences), len(differences))


@public
def ratio(
    treatment: Iterable[float],
    control: Iterable[float],
    *,
    groups: Iterable[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The change of a mean in percent, `100 (mean(treatment) / mean(control) - 1)`, on the same units.

    Both means are resampled together, so the interval knows that the control's mean is uncertain too.

    Args:
        treatment: one number for each unit.
        control: one for each, in the same order.
        groups: a label for each unit, as in `paired`.
        level: how often such intervals cover the true change.
        seed: of the resamples.
        resamples: how many.

    Returns:
        The change, in percent, and its bootstrap interval.

    Raises:
        DataError: as `paired`, or a control's mean of 0.
        SteerError: scipy is not installed.

    Example:
        >>> from steerfn.evaluate import ratio
        >>> print(ratio([2, 4, 6, 9, 8, 7], [1, 2, 3, 4, 5, 6], resamples=999))
        71.4 (95 % CI 27.1 to 116, n = 6)
    """
    check_options(level, seed, resamples)
    first, second = _both(treatment, control)
    first, second = _by_group(first, groups), _by_group(second, groups)
    if second.mean() == 0:
        raise DataError("A change in percent needs a control whose mean is not 0; take the difference instead.")
    change = float(_change(first, second))
    low, high = interval((first, second), _change, level, seed, resamples, scale=abs(100 + change) or 100.0)
    return Estimate(change, low, high, len(first), level)


@public
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
    check_options(level)
    counts = (successes, n)
    if None in map(as_integer, counts) or not 0 <= successes <= n or n < 1:
        raise DataError(f"A proportion must be a number of successes out of a positive n, not {successes!r} of {n!r}.")
    p, z = successes / n, statistics.NormalDist().inv_cdf((1 + level) / 2)
    middle, wide = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not leave the range of proportions at its ends.
    return Estimate(p, max(0.0, (middle - wide) / scale), min(1.0, (middle + wide) / scale), int(n), level)


@public
def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values: `max over j <= i of min(1, (m - j) p_(j))`, with `p_(0) <= p_(1) <= ...`.

    Calling those significant that stay below `a` makes a false claim in at most a part `a` of families, however the
    tests depend on each other.

    Args:
        p_values: of all tests of one family, each from 0 to 1.

    Returns:
        The adjusted ones, in the same order.

    Raises:
        DataError: a number that is no probability.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".

    Example:
        >>> from steerfn.evaluate import holm
        >>> holm([0.25, 0.01, 0.04])
        [0.25, 0.03, 0.08]
    """
    values = [float(finite_number(f"p_values[{i}]", p, least=0, most=1)) for i, p in enumerate(p_values)]
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = highest
    return adjusted


@public
def by_prompt(values: Iterable[float], prompts: Sequence[Any]) -> np.ndarray:
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
    which = np.array(units_of(prompts), dtype=np.intp)
    known, n = ~np.isnan(numbers), which.max(initial=-1) + 1
    sums = np.bincount(which[known], numbers[known], minlength=n)
    counts = np.bincount(which[known], minlength=n)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def by_unit(values: Any, units: Sequence[int]) -> np.ndarray:
    """The mean of each unit's texts, `[units]`; of several such lists in a row, `[lists, units]`."""
    rows = np.stack([by_prompt(each, units) for each in np.reshape(values, (-1, len(units)))])
    return rows if len(rows) > 1 else rows[0]


def units_of(prompts: Sequence[Any], groups: Any = None) -> list[int]:
    """The unit of each prompt, from 0 in order of appearance: equal prompts are one, and so are prompts of one group.

    Raises:
        DataError: groups that do not fit.

    Example:
        >>> units_of(["a", "b", "a"]), units_of(["a", "b", "c"], groups=["x", "x", "y"])
        ([0, 1, 0], [0, 0, 1])
    """
    if groups is not None:
        return number_groups(groups, len(prompts), "prompts")
    order: dict[str, int] = {}
    return [order.setdefault(repr(prompt), len(order)) for prompt in prompts]


def check_intervals(level: Any = 0.95, seed: Any = 0, resamples: Any = RESAMPLES) -> None:
    """Refuse what no interval can be made with, before there is anything to make it of.

    Raises:
        DataError: an option out of its range.
        SteerError: scipy, which is wanted last, is not installed.
    """
    check_options(level, seed, resamples)
    import_extra("scipy", "evaluate")


def check_options(level: Any = 0.95, seed: Any = 0, resamples: Any = RESAMPLES) -> None:
    """Refuse options that no interval can be made with.

    Raises:
        DataError: a level outside 0 to 1, a seed that is not a non-negative integer, fewer than 99 resamples.
    """
    finite_number("level", level, above=0, below=1, hint="0.95 is usual")
    integer("seed", seed, 0)
    integer("resamples", resamples, FEWEST)


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what} must be numbers, one for each unit, not {values!r:.80}.") from None
    if numbers.ndim != 1 or not len(numbers):
        raise DataError(f"{what} must be numbers, one for each unit and at least one, not an array of {numbers.shape}.")
    if not np.isfinite(numbers).all():
        where = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(f"{what}[{where}] is {numbers[where]}; leave out units without a number first.")
    return numbers


def _both(treatment: Any, control: Any) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of two conditions on the same units."""
    first, second = _numbers(treatment, "treatment"), _numbers(control, "control")
    if len(first) != len(second):
        raise DataError(
            f"There are {len(first)} numbers of the treatment and {len(second)} of the control. A paired comparison "
            "needs both for each unit."
        )
    return first, second


def _by_group(numbers: np.ndarray, groups: Any) -> np.ndarray:
    """The mean of each group, where there are groups."""
    return numbers if groups is None else by_prompt(numbers, number_groups(groups, len(numbers), "numbers"))


def _is_binary(numbers: np.ndarray) -> bool:
    return bool(np.isin(numbers, (0.0, 1.0)).all())


def _of_two_shares(differences: np.ndarray, level: float) -> tuple[float, float]:
    """Bonett and Price's interval of a difference of paired shares; see `paired`."""
    n, z = len(differences) + 2, statistics.NormalDist().inv_cdf((1 + level) / 2)
    more, less = ((differences == each).sum() + 1 for each in (1, -1))
    middle = (more - less) / n
    wide = z * math.sqrt(((more + less) / n - middle**2) / n)
    return max(-1.0, float(middle - wide)), min(1.0, float(middle + wide))


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
