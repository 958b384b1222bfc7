"""Pairs of conditions on the same prompts, tested and judged together. No model is needed here."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from steerfn.evaluate._against_random import FEWEST_DRAWS, AgainstRandom, PromptBlock, against_random, complete
from steerfn.evaluate._bootstrap import ROUNDING
from steerfn.evaluate._common import ENOUGH, mean_of_known
from steerfn.evaluate._sign_flip import least_p
from steerfn.evaluate._statistics import RESAMPLES, Difference, Estimate, estimate, holm, paired, ratio
from steerfn.output import Record

UNSTEERED = "unsteered"
"""The name of the condition without steering."""
RANDOM = "random like"
"""What the names of conditions of random vectors begin with."""
CLEAR = 3.0
"""Standard errors that a control's mean is above 0 at least where changes are told in percent of it."""

Against = Literal["unsteered", "random", "vector"]
Values = Mapping[str, Mapping[str, np.ndarray]]
"""By metric and condition, one number for each prompt, NaN where there is none: `[prompts]`, and `[draws, prompts]` of
random vectors."""


@dataclasses.dataclass(frozen=True)
class Pair(Record):
    """One metric under two conditions, compared; see `compare_vectors`.

    Attributes:
        metric: its name.
        treatment: the condition of interest.
        control: the condition that it is compared with.
        against: what the control is: the unsteered model, random vectors, or another vector.
        difference: treatment minus control, paired by prompt; without interval and test where fewer than two prompts
            have a number under both. Against random vectors the interval is that of `against_random`: it knows that
            random vectors scatter.
        percent: the change in percent of the control's mean, where that means something: the metric is negative
            nowhere, and the control's mean is more than three standard errors above 0.
        left_out: prompts that have no number under one of the two.
        draws: the random vectors with numbers that the control is the mean of; 0 for any other control.
        among: the p-value of the treatment's mean as one more of theirs (see `against_random`); NaN without any test.
        claim: the p-value that is corrected: `p`, and against random vectors not below that of the same vector against
            the unsteered model, since an effect is claimed only where both comparisons show it.
        adjusted: `claim` after Holm's correction over the family.
        family: how many comparisons were corrected together: those of this kind in all metrics.
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
    claim: float = math.nan
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
        return self.n >= self.needed and by_flips and not self.few_draws and not self.sparse

    @property
    def few_draws(self) -> bool:
        """Whether the control is fewer than five random vectors, which do not show what others do."""
        return self.against == "random" and self.draws < FEWEST_DRAWS

    @property
    def sparse(self) -> bool:
        """Whether more than a fifth of the prompts have no number under one of the two: the rest are survivors."""
        return self.n < ENOUGH * (self.n + self.left_out)

    @property
    def significant(self) -> bool:
        """Whether a difference is shown: adjusted p below alpha, 0 outside the interval, and enough to carry it."""
        estimate = self.difference.estimate
        return self.carried and self.adjusted < self.alpha and (estimate.low > 0 or estimate.high < 0)

    @property
    def verdict(self) -> str:
        """In a word or two: "higher", "lower", "not shown", or what is missing: "no numbers", "too few numbers",
        "too few prompts", "too few resamples", "too few random vectors".
        """
        if self.n < 2:
            return "no numbers"
        if self.sparse:
            return "too few numbers"
        if self.n < self.needed:
            return "too few prompts"
        if not self.carried:
            return "too few random vectors" if self.few_draws else "too few resamples"
        if not self.significant:
            return "not shown"
        return "higher" if self.difference.estimate.mean > 0 else "lower"

    def to_dict(self) -> dict[str, Any]:
        """Its numbers, flat."""
        estimate, change = self.difference.estimate, self.percent
        return {
            "metric": self.metric,
            "treatment": self.treatment,
            "control": self.control,
            "against": self.against,
            "difference": estimate.mean,
            "low": estimate.low,
            "high": estimate.high,
            "level": estimate.level,
            "percent": change and change.mean,
            "percent_low": change and change.low,
            "percent_high": change and change.high,
            "p": self.p,
            "p_claim": self.claim,
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
    return f"{RANDOM} {name}"


def plan_pairs(vectors: Sequence[str]) -> list[tuple[str, str, Against]]:
    """Every vector against the unsteered model, against its random vectors, and against every earlier vector."""
    plan: list[tuple[str, str, Against]] = []
    for i, name in enumerate(vectors):
        plan.append((name, UNSTEERED, "unsteered"))
        plan.append((name, random_like(name), "random"))
        plan.extend((name, earlier, "vector") for earlier in vectors[:i])
    return plan


def analyse(
    values: Values,
    plan: Sequence[tuple[str, str, Against]],
    *,
    blocks: Mapping[str, np.ndarray] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Pair, ...]:
    """Compare pairs of conditions in every metric, and correct the comparisons of each kind together.

    An effect is claimed where a vector differs from the unsteered model and from random vectors, so the p-value of that
    claim is the larger of the two, and Holm's correction runs over metrics x vectors. Comparisons with the unsteered
    model, and those between vectors, are families of their own.

    Args:
        values: by metric and condition, one number for each prompt (`[prompts]`), averaged over seeds, or of random
            vectors `[slots, prompts]`; NaN where there is none. A condition of which a metric says nothing is left out
            of that metric.
        plan: treatment, control, and what the control is.
        blocks: by condition of random vectors, the block of each prompt: prompts of one block have the same random
            vector in a slot, others have another. Where a condition has none, slots are random vectors.
        level: of the intervals; `1 - level` is the rate of false claims allowed in each family.
        seed, resamples: of every interval and test.

    Returns:
        A pair for every metric and planned comparison of which both conditions are there.
    """
    options = {"level": level, "seed": seed, "resamples": resamples}
    pairs = [
        _compare(metric, treatment, control, against, of, (blocks or {}).get(control), options)
        for metric, of in values.items()
        for treatment, control, against in plan
        if treatment in of and control in of
    ]
    plain = {(pair.metric, pair.treatment): pair.p for pair in pairs if pair.against == "unsteered"}
    claims = [
        float(np.maximum(pair.p, plain.get((pair.metric, pair.treatment), 0.0))) if pair.against == "random" else pair.p
        for pair in pairs
    ]
    adjusted, families = holm_by_kind(claims, [pair.against for pair in pairs])
    return tuple(
        dataclasses.replace(pair, claim=claim, adjusted=p, family=family, resamples=resamples)
        for pair, claim, p, family in zip(pairs, claims, adjusted, families, strict=True)
    )


def holm_by_kind(claims: Sequence[float], kinds: Sequence[str]) -> tuple[list[float], list[int]]:
    """The p-values after Holm's correction within each kind of comparison, and the size of each family without NaN."""
    adjusted, families = [math.nan] * len(claims), [1] * len(claims)
    for kind in set(kinds):
        tested = [i for i, each in enumerate(kinds) if each == kind and not math.isnan(claims[i])]
        for i, p in zip(tested, holm([claims[i] for i in tested]), strict=True):
            adjusted[i] = p
        for i, each in enumerate(kinds):
            if each == kind:
                families[i] = max(1, len(tested))
    return adjusted, families


def mean_of(values: np.ndarray, options: Mapping[str, Any]) -> Estimate:
    """The mean over the prompts that have a number, with its interval; random vectors are averaged first."""
    numbers = _over_draws(values)
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0, options["level"])
    return estimate(known, **options)


def _compare(
    metric: str,
    treatment: str,
    control: str,
    against: Against,
    values: Mapping[str, np.ndarray],
    block: np.ndarray | None,
    options: Mapping[str, Any],
) -> Pair:
    # A metric that is negative anywhere has a scale that does not begin at 0, on which percents mean nothing.
    from_zero = not any((each < 0).any() for each in values.values())
    if against == "random":
        difference, change, left_out, test = against_draws(
            values[treatment], np.atleast_2d(values[control]), block, from_zero=from_zero, options=options
        )
        return Pair(metric, treatment, control, against, difference, change, left_out, test.draws, float(test.p))
    first, second = values[treatment], _over_draws(values[control])
    both = np.isfinite(first) & np.isfinite(second)
    difference, change = _paired(first[both], second[both], from_zero, options)
    return Pair(metric, treatment, control, against, difference, change, int((~both).sum()))


def _paired(
    first: np.ndarray, second: np.ndarray, from_zero: bool, options: Mapping[str, Any]
) -> tuple[Difference, Estimate | None]:
    """The paired difference, and the change in percent where that means something."""
    n = len(first)
    if n < 2:
        mean = float((first - second).mean()) if n else math.nan
        return Difference(Estimate(mean, math.nan, math.nan, n, options["level"]), math.nan, math.nan, n), None
    change = ratio(first, second, **options) if from_zero and _is_clear(second) else None
    return paired(first, second, **options), change


def against_draws(
    vector: np.ndarray,
    random: np.ndarray,
    block: np.ndarray | None,
    *,
    from_zero: bool,
    options: Mapping[str, Any],
) -> tuple[Difference, Estimate | None, int, AgainstRandom]:
    """A vector's numbers against random vectors': the paired difference over prompts, with `against_random`'s interval.

    Args:
        vector: a number for each prompt, NaN where there is none.
        random: `[slots, prompts]`, likewise.
        block: of each prompt; None is one block for all.
        from_zero: whether changes in percent mean something.
        options: level, seed, resamples.

    Returns:
        The difference, the change in percent or None, how many prompts are left out, and the test.
    """
    level = options["level"]
    parts = complete(vector, random, np.zeros(len(vector), int) if block is None else block)
    test = against_random([PromptBlock.of(vector[prompts], draws) for prompts, draws in parts], level)
    first, second = (
        np.concatenate([*each, np.array([])])  # which is there where no part is
        for each in ([vector[prompts] for prompts, _ in parts], [draws.mean(0) for _, draws in parts])
    )
    difference, change = _paired(first, second, from_zero, options)
    left_out, estimate = len(vector) - len(first), difference.estimate
    if test.margin > ROUNDING * max(1.0, abs(estimate.mean)):  # nor is it NaN
        difference = dataclasses.replace(difference, estimate=_around(estimate, float(test.margin)))
        if change is not None:
            # To first order a ratio of means scatters as vector - ratio * control does, over the control's mean.
            by = 1 + change.mean / 100
            error = against_random([PromptBlock.of(vector[prompts], by * draws) for prompts, draws in parts], level)
            change = _around(change, 100 * float(error.margin) / float(second.mean()))
    return difference, change, left_out, test


def _around(estimate: Estimate, margin: float) -> Estimate:
    return dataclasses.replace(estimate, low=estimate.mean - margin, high=estimate.mean + margin)


def _over_draws(values: np.ndarray) -> np.ndarray:
    """`[draws, prompts]` averaged over the draws that have a number; `[prompts]` as they are."""
    return values if values.ndim == 1 else mean_of_known(values, np.isfinite(values))


def _is_clear(control: np.ndarray) -> bool:
    """Whether a control's mean is clearly above 0."""
    error = control.std(ddof=1) / math.sqrt(len(control))
    return bool(control.mean() > CLEAR * error)
