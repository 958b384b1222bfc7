"""Pairs of conditions on the same prompts, tested and judged together. No model is needed here."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from steerfn.evaluate._among import among
from steerfn.evaluate._sign_flip import least_p
from steerfn.evaluate._statistics import RESAMPLES, Difference, Estimate, estimate, holm, paired, ratio

UNSTEERED = "unsteered"
"""The name of the condition without steering."""
CLEAR = 3.0
"""Standard errors that a control's mean is above 0 at least where changes are told in percent of it."""

Against = Literal["unsteered", "random", "vector"]
Values = Mapping[str, Mapping[str, np.ndarray]]
"""By metric and condition, one number for each prompt, NaN where there is none: `[prompts]`, and `[draws, prompts]` of
random vectors."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """One metric under two conditions.

    Attributes:
        metric: its name.
        treatment: the condition of interest.
        control: the condition that it is compared with.
        against: what the control is: the unsteered model, random vectors, or another vector.
        difference: treatment minus control, paired by prompt; without interval and test where fewer than two prompts
            have a number under both.
        percent: the change in percent of the control's mean, where that means something: the metric is negative
            nowhere, and the control's mean is more than three standard errors above 0.
        left_out: prompts that have no number under one of the two.
        draws: the random vectors with numbers that the control is the mean of; 0 where it is none of random vectors.
        among: the p-value of the treatment's mean as one more of theirs (see `among`); NaN where there are no two.
        adjusted: the p-value after Holm's correction over the family.
        family: how many comparisons were corrected together.
        resamples: sign flips of the test, at most.
    """

    metric: str
    treatment: str
    control: str
    against: Against
    difference: Difference
    percent: Estimate | None
    left_out: int
    draws: int = 0
    among: float = math.nan
    adjusted: float = math.nan
    family: int = 1
    resamples: int = RESAMPLES

    @property
    def n(self) -> int:
        """The prompts that have a number under both conditions."""
        return self.difference.n

    @property
    def p(self) -> float:
        """The p-value before correction: of the sign flips over prompts, and not below `among` for random vectors.

        Against random vectors both must hold: that the prompts do not differ by chance, and that this vector is not
        just one more of those.
        """
        return self.difference.p if self.against != "random" else float(np.maximum(self.difference.p, self.among))

    @property
    def alpha(self) -> float:
        """The rate of false claims that is allowed over the whole family."""
        return round(1 - self.difference.estimate.level, 12)  # 1 - 0.95 is a bit more than 0.05

    @property
    def needed(self) -> int:
        """The fewest prompts with which the test could reach significance at all, `2 / 2^n * family <= alpha`."""
        return max(2, math.ceil(1 + math.log2(self.family / self.alpha) - 1e-9))

    @property
    def carried(self) -> bool:
        """Whether so many prompts, sign flips and random vectors can carry a significant difference at all."""
        by_flips = least_p(self.n, self.resamples) * self.family <= self.alpha * (1 + 1e-9)
        return self.n >= self.needed and by_flips and not self.lone

    @property
    def lone(self) -> bool:
        """Whether the control is a single random vector, which does not say what others do."""
        return self.against == "random" and self.draws == 1

    @property
    def significant(self) -> bool:
        """Whether a difference is shown: adjusted p below alpha, 0 outside the interval, and enough to carry it."""
        found = self.difference.estimate
        return self.carried and self.adjusted < self.alpha and (found.low > 0 or found.high < 0)

    @property
    def verdict(self) -> str:
        """In a word or two: "higher", "lower", "not shown", or what is missing: "no numbers", "too few prompts",
        "too few resamples", "one random vector".
        """
        if self.n < 2:
            return "no numbers"
        if self.n < self.needed:
            return "too few prompts"
        if not self.carried:
            return "one random vector" if self.lone else "too few resamples"
        if not self.significant:
            return "not shown"
        return "higher" if self.difference.estimate.mean > 0 else "lower"

    def to_dict(self) -> dict[str, Any]:
        """Its numbers, flat."""
        found, change = self.difference.estimate, self.percent
        return {
            "metric": self.metric,
            "treatment": self.treatment,
            "control": self.control,
            "against": self.against,
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "level": found.level,
            "percent": change and change.mean,
            "percent_low": change and change.low,
            "percent_high": change and change.high,
            "p": self.p,
            "p_holm": self.adjusted,
            "p_prompts": self.difference.p,
            "p_among_random": self.among,
            "random_vectors": self.draws,
            "family": self.family,
            "effect": self.difference.effect,
            "n": self.n,
            "left_out": self.left_out,
            "verdict": self.verdict,
        }


def random_like(name: str) -> str:
    """The condition of random vectors that are as long as a vector."""
    return f"random like {name}"


def planned(vectors: Sequence[str]) -> list[tuple[str, str, Against]]:
    """Every vector against the unsteered model, against its random vectors, and against every earlier vector."""
    found: list[tuple[str, str, Against]] = []
    for i, name in enumerate(vectors):
        found.append((name, UNSTEERED, "unsteered"))
        found.append((name, random_like(name), "random"))
        found.extend((name, earlier, "vector") for earlier in vectors[:i])
    return found


def analyse(
    values: Values,
    plan: Sequence[tuple[str, str, Against]],
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Pair, ...]:
    """Compare pairs of conditions in every metric, and correct for all of these comparisons together.

    Args:
        values: by metric and condition, one number for each prompt (`[prompts]`), averaged over seeds, or one for each
            random vector and prompt (`[draws, prompts]`); NaN where there is none. A condition of which a metric says
            nothing is left out of that metric.
        plan: treatment, control, and what the control is.
        level: of the intervals; `1 - level` is the rate of false claims allowed over all comparisons.
        seed: of the resampling.
        resamples: of every interval and test.

    Returns:
        A pair for every metric and planned comparison of which both conditions are there.
    """
    options = {"level": level, "seed": seed, "resamples": resamples}
    found = [
        _compared(metric, treatment, control, against, of, options)
        for metric, of in values.items()
        for treatment, control, against in plan
        if treatment in of and control in of
    ]
    tested = [i for i, pair in enumerate(found) if not math.isnan(pair.p)]
    adjusted = dict(zip(tested, holm([found[i].p for i in tested]), strict=True))
    return tuple(
        dataclasses.replace(
            pair, adjusted=adjusted.get(i, math.nan), family=max(1, len(tested)), resamples=options["resamples"]
        )
        for i, pair in enumerate(found)
    )


def mean_of(values: np.ndarray, options: Mapping[str, Any]) -> Estimate:
    """The mean over the prompts that have a number, with its interval; random vectors are averaged first."""
    numbers = _over_draws(values)
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0, options["level"])
    return estimate(known, **options)


def _compared(
    metric: str,
    treatment: str,
    control: str,
    against: Against,
    values: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
) -> Pair:
    first, second = values[treatment], _over_draws(values[control])
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    n, left_out = len(first), int((~both).sum())
    if n < 2:
        mean = float((first - second).mean()) if n else math.nan
        nothing = Estimate(mean, math.nan, math.nan, n, options["level"])
        difference, change = Difference(nothing, math.nan, math.nan, n), None
    else:
        difference = paired(first, second, **options)
        # A metric that is negative anywhere has a scale that does not begin at 0, on which percents mean nothing.
        from_zero = not any((each < 0).any() for each in values.values())
        change = ratio(first, second, **options) if from_zero and _is_clear(second) else None
    draws, beside = _among(values[treatment], values[control], n) if against == "random" else (0, math.nan)
    return Pair(metric, treatment, control, against, difference, change, left_out, draws, beside)


def _among(treatment: np.ndarray, draws: np.ndarray, n: int) -> tuple[int, float]:
    """How many random vectors have numbers, and p of a vector's mean as one more of theirs, on the prompts of both.

    A few random vectors may agree by chance, and counts and shares often do (no refusal under any): no spread is taken
    to be less than the standard error over `n` prompts of the vector's difference from them.
    """
    draws = np.atleast_2d(draws)
    both = np.isfinite(treatment) & np.isfinite(draws)
    apart = np.where(both, np.where(both, treatment, 0) - np.where(both, draws, 0), np.nan)
    means, units = _over_draws(apart.T), _over_draws(apart)
    means = means[np.isfinite(means)]
    if n < 2 or len(means) < 2:
        return len(means), math.nan
    mean = float(treatment[both.any(0)].mean())
    return len(means), among(mean, mean - means, float(np.nanstd(units, ddof=1)) / math.sqrt(n))


def _over_draws(values: np.ndarray) -> np.ndarray:
    """`[draws, prompts]` averaged over the draws that have a number; `[prompts]` as they are."""
    if values.ndim == 1:
        return values
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0).sum(0), known.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _is_clear(control: np.ndarray) -> bool:
    """Whether a control's mean is clearly above 0."""
    error = control.std(ddof=1) / math.sqrt(len(control))
    return bool(control.mean() > CLEAR * error)
