"""From the values of items under several conditions to an `Outcome`."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steerfn.evaluate._outcome import STEERED, Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._statistics import RESAMPLES, Difference, Estimate, estimate, paired, proportion

Values = Mapping[str, Mapping[str, np.ndarray]]
"""By condition and figure, one number for each item; NaN where an item has none."""
DRAWS = 500
"""Resamples at once."""


def outcome(
    protocol: str,
    source: str,
    values: Values,
    *,
    rates: Collection[str] = (),
    compared: Collection[str],
    also: Mapping[str, Mapping[str, Estimate]] | None = None,
    records: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
    about: Mapping[str, Any],
    level: float,
    seed: int,
) -> Outcome:
    """The outcome of a protocol: every figure's mean with its interval, and the paired differences.

    Args:
        protocol: its name.
        source: its paper.
        values: by condition and figure, a number for each item. The condition "steered" is compared with all others.
        rates: the figures that are 0 or 1 for each item: their intervals are Wilson's.
        compared: the figures whose paired differences are taken; each one more makes all p-values larger.
        also: estimates that are no means of items, by condition and name.
        records: see `Outcome`.
        notes: see `Outcome`.
        about: see `Outcome`.
        level: of the intervals.
        seed: of the resampling.
    """
    also = also or {}
    notes = [*notes]
    conditions = dict.fromkeys([*values, *also])
    found: dict[str, dict[str, Estimate]] = {}
    for condition in conditions:
        mine = {}
        for name, numbers in values.get(condition, {}).items():
            mine[name] = _estimate(numbers, name in rates, level, seed)
            if missing := int(np.isnan(numbers).sum()):
                notes.append(f"{missing} of {len(numbers)} items have no {name} ({condition}) and are left out of it.")
        found[condition] = {**mine, **also.get(condition, {})}
    effects = {
        condition: _effects(values[STEERED], values[condition], compared, level, seed)
        for condition in values
        if condition != STEERED
    }
    return Outcome(
        protocol=protocol,
        source=source,
        figures=found[STEERED],
        baseline=found.get(UNSTEERED, {}),
        controls={name: each for name, each in found.items() if name not in (STEERED, UNSTEERED)},
        effects={name: each for name, each in effects.items() if each},
        records=tuple(records),
        notes=tuple(notes),
        about=about,
    )


def _estimate(numbers: np.ndarray, is_rate: bool, level: float, seed: int) -> Estimate:
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0, level)
    if is_rate:
        return proportion(int(known.sum()), len(known), level)
    return estimate(known, level=level, seed=seed)


def _effects(
    steered: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    compared: Collection[str],
    level: float,
    seed: int,
) -> dict[str, Difference]:
    found = {}
    for name in [name for name in steered if name in other and name in compared]:
        known = ~np.isnan(steered[name]) & ~np.isnan(other[name])
        if known.sum() > 1:
            found[name] = paired(steered[name][known], other[name][known], level=level, seed=seed)
    return found


def records_of(items: Sequence[Mapping[str, Any]], values: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record for every item and condition: what the item is, the condition, and its values."""
    return [
        {"item": i, "condition": condition, **item, **{name: _plain(each[i]) for name, each in found.items()}}
        for condition, found in values.items()
        for i, item in enumerate(items)
    ]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def resampled(
    statistic: Callable[[np.ndarray], np.ndarray],
    values: np.ndarray,
    *,
    level: float,
    seed: int,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A statistic of items that is no mean, with the percentile interval of its bootstrap distribution.

    Args:
        statistic: of the last axis.
        values: one number for each item.
        level: how often such intervals should cover the true value; for few items they are somewhat narrow.
        seed: of the resampling.
        resamples: how many.
    """
    n = len(values)
    if n < 2:
        return Estimate(math.nan, math.nan, math.nan, n, level)
    random = np.random.default_rng(seed)
    drawn = [
        statistic(values[random.integers(0, n, (min(DRAWS, resamples - start), n))])
        for start in range(0, resamples, DRAWS)
    ]
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(values)), float(low), float(high), n, level)


def exponential(found: Estimate) -> Estimate:
    """`exp` of a mean and of the ends of its interval, as from cross-entropy to perplexity."""
    with np.errstate(over="ignore"):
        mean, low, high = (float(np.exp(each)) for each in (found.mean, found.low, found.high))
    return Estimate(mean, low, high, found.n, found.level)
