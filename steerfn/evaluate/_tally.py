"""From the values of items under several conditions to an `Outcome`."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steerfn.evaluate._bootstrap import ROUNDING, around_a_constant
from steerfn.evaluate._common import mean_of_known
from steerfn.evaluate._outcome import RANDOM, STEERED, Outcome
from steerfn.evaluate._pairs import UNSTEERED, against_draws
from steerfn.evaluate._statistics import RESAMPLES, Difference, Estimate, by_prompt, estimate, paired, proportion
from steerfn.values import plain_number

Values = Mapping[str, Mapping[str, np.ndarray]]
"""By condition and figure, one number for each item; NaN where an item has none."""
DRAWS = 500
"""Resamples at once."""


def outcome(
    protocol: str,
    source: str,
    values: Values,
    *,
    draws: Sequence[str] = (),
    units: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    rates: Collection[str] = (),
    compared: Collection[str],
    also: Mapping[str, Mapping[str, Estimate]] | None = None,
    records: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
    about: Mapping[str, Any],
    level: float,
    seed: int,
) -> Outcome:
    """The outcome of a protocol: every figure's mean with its interval, and the paired differences; see `Outcome`.

    Args:
        values: by condition and figure, a number for each item. The condition "steered" is compared with all others.
        draws: the conditions that are random vectors: they are one control, "random", and compared with together.
        units: the unit of each item, itself or its group; by figure where figures are of different items. None: each
            item is one.
        rates: the figures that are 0 or 1 for each item: their intervals are Wilson's.
        compared: the figures whose paired differences are taken; each one more makes all p-values larger.
        also: estimates that are no means of items, by condition and name.
    """
    also, notes, options = also or {}, [*notes], {"level": level, "seed": seed}
    named = [each for each in dict.fromkeys([*values, *also]) if each not in draws]
    by_unit = {
        condition: {name: _by_unit(name, numbers, units) for name, numbers in of.items()}
        for condition, of in values.items()
    }
    estimates: dict[str, dict[str, Estimate]] = {}
    for condition in named:
        mine = {}
        for name, numbers in by_unit.get(condition, {}).items():
            mine[name] = _estimate(numbers, name in rates, options)
            if missing := int(np.isnan(numbers).sum()):
                notes.append(f"{missing} of {len(numbers)} items have no {name} ({condition}) and are left out of it.")
        estimates[condition] = {**mine, **also.get(condition, {})}
    effects = {
        condition: _effects(by_unit[STEERED], by_unit[condition], compared, options)
        for condition in named
        if condition != STEERED and condition in by_unit
    }
    if draws:
        estimates[RANDOM] = _of_draws(
            [by_unit.get(each, {}) for each in draws], [also.get(e, {}) for e in draws], options
        )
        effects[RANDOM] = _against_draws(by_unit[STEERED], [by_unit.get(each, {}) for each in draws], compared, options)
    return Outcome(
        protocol=protocol,
        source=source,
        figures=estimates[STEERED],
        baseline=estimates.get(UNSTEERED, {}),
        controls={name: each for name, each in estimates.items() if name not in (STEERED, UNSTEERED)},
        effects={name: each for name, each in effects.items() if each},
        draws=len(draws),
        records=tuple(records),
        notes=tuple(notes),
        about=about,
    )


def _by_unit(figure: str, numbers: np.ndarray, units: Any) -> np.ndarray:
    mine = units[figure] if isinstance(units, Mapping) else units
    return numbers if mine is None else by_prompt(numbers, mine)


def _estimate(numbers: np.ndarray, is_rate: bool, options: Mapping[str, Any]) -> Estimate:
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0, options["level"])
    if is_rate and np.isin(known, (0.0, 1.0)).all():
        return proportion(int(known.sum()), len(known), options["level"])
    return estimate(known, **options)


def _of_draws(
    values: Sequence[Mapping[str, np.ndarray]], also: Sequence[Mapping[str, Estimate]], options: Mapping[str, Any]
) -> dict[str, Estimate]:
    """The mean of random vectors in every figure: over them first, so that items are the units of its interval."""
    stacked = {name: np.stack([of[name] for of in values]) for name in values[0]}
    means = {name: mean_of_known(numbers, ~np.isnan(numbers)) for name, numbers in stacked.items()}
    estimates = {name: _estimate(numbers, False, options) for name, numbers in means.items()}
    for name, first in also[0].items():
        # What is no mean of items has no interval of its mean over random vectors here.
        mean = float(np.mean([of[name].mean for of in also]))
        estimates[name] = Estimate(mean, math.nan, math.nan, first.n, options["level"])
    return estimates


def _effects(
    steered: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    compared: Collection[str],
    options: Mapping[str, Any],
) -> dict[str, Difference]:
    effects = {}
    for name in [name for name in steered if name in other and name in compared]:
        known = ~np.isnan(steered[name]) & ~np.isnan(other[name])
        if known.sum() > 1:
            difference = paired(steered[name][known], other[name][known], **options)
            effects[name] = dataclasses.replace(difference, left_out=int((~known).sum()))
    return effects


def _against_draws(
    steered: Mapping[str, np.ndarray],
    draws: Sequence[Mapping[str, np.ndarray]],
    compared: Collection[str],
    options: Mapping[str, Any],
) -> dict[str, Difference]:
    """The steered model against random vectors, by the rule of `compare_vectors`."""
    effects = {}
    for name in [name for name in steered if name in draws[0] and name in compared]:
        random = np.stack([of[name] for of in draws])
        difference, _, left_out, test = against_draws(
            steered[name], random, None, from_zero=False, options={**options, "resamples": RESAMPLES}
        )
        if difference.n > 1:
            p = float(np.fmax(difference.p, test.p))  # a single random vector has no p of its own, and no claim
            effects[name] = dataclasses.replace(difference, p=p, left_out=left_out)
    return effects


def records_of(items: Sequence[Mapping[str, Any]], values: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record for every item and condition: what the item is, the condition, and its values."""
    return [
        {"item": i, "condition": condition, **item, **{name: plain_number(each[i]) for name, each in columns.items()}}
        for condition, columns in values.items()
        for i, item in enumerate(items)
    ]


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], np.ndarray],
    values: np.ndarray,
    units: Sequence[int] | None = None,
    *,
    level: float,
    seed: int,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A statistic of items that is no mean, with the percentile interval of its bootstrap distribution.

    Args:
        statistic: of the last axis.
        values: one number for each item.
        units: the unit of each item: units are drawn, with all of their items. None: each item is one.
        level: how often such intervals should cover the true value; for few items they are somewhat narrow.
    """
    numbers = np.arange(len(values)) if units is None else np.asarray(units)
    parts = [values[numbers == unit] for unit in dict.fromkeys(numbers.tolist())]
    n, observed = len(parts), float(statistic(values)) if len(values) > 1 else math.nan
    if n < 2:
        return Estimate(observed, math.nan, math.nan, n, level)
    random = np.random.default_rng(seed)
    if n == len(values):
        drawn = [
            statistic(values[random.integers(0, n, (min(DRAWS, resamples - start), n))])
            for start in range(0, resamples, DRAWS)
        ]
    else:  # as many items as the units drawn happen to have
        chosen = random.integers(0, n, (resamples, n))
        drawn = [np.array([statistic(np.concatenate([parts[unit] for unit in each])) for each in chosen])]
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    if high - low <= ROUNDING * max(abs(high), abs(low)):
        low, high = around_a_constant(observed, n, level)
    return Estimate(observed, float(low), float(high), n, level)


def exponential(estimate: Estimate) -> Estimate:
    """`exp` of a mean and of the ends of its interval, as from cross-entropy to perplexity."""
    with np.errstate(over="ignore"):
        mean, low, high = (float(np.exp(each)) for each in (estimate.mean, estimate.low, estimate.high))
    return Estimate(mean, low, high, estimate.n, estimate.level)
