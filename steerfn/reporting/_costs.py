"""What steering costs: side effects by their protocol, and how far they are beyond what is usually put up with."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from steerfn._vector import SteeringVector
from steerfn.evaluate import Difference, Estimate, Outcome, VectorComparison, by_prompt, paired, protocols
from steerfn.evaluate._outcome import STEERED
from steerfn.evaluate._pairs import UNSTEERED, mean_of, random_like
from steerfn.evaluate._shown import percent, shown
from steerfn.metrics._metric import Setting, as_metrics, measure

PERPLEXITY_RATIO = 1.1
"""As `calibrate` puts up with unless told otherwise."""
KL = 0.1
"""Nats for each token, as Arditi et al. 2024 put up with."""
REPETITION = 0.05
"""A share of n-grams that readers begin to notice."""
ACCURACY = 0.05
"""A loss that is more than rounding in a table."""
FLUENCY = ("repetition", "distinct_n")
BESIDE = 3
"""Random vectors whose side effects are measured at most: what a page is wide enough for."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs as clauses.

    Attributes:
        measured: side effects that are beyond their bound.
        possible: those that are not, but whose interval reaches beyond it.
    """

    measured: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()


def side_effects(
    model: Any,
    tokenizer: Any,
    vector: SteeringVector,
    passages: Any,
    questions: Any,
    effect: VectorComparison,
    name: str,
    *,
    level: float,
    seed: int,
    controls: int,
    **options: Any,
) -> Outcome:
    """`protocols.side_effects`, with the fluency of the texts that were generated for the effect already.

    The random vectors are the first of those of the effect: they are drawn with `seed`, `seed + 1`, ...

    Args:
        model: the model.
        tokenizer: its tokenizer.
        vector: the vector.
        passages: plain texts.
        questions: questions with two answers, or None.
        effect: the comparison, with its texts.
        name: the vector's name in it.
        level: of the intervals.
        seed: of the random vectors and resamples.
        controls: the random vectors of the effect.
        options: what the protocol takes.
    """
    found = protocols.side_effects(
        model, tokenizer, vector, passages, questions=questions, level=level, seed=seed,
        controls=min(controls, BESIDE), **options,
    )  # fmt: skip
    values = fluency(effect, {STEERED: name, UNSTEERED: UNSTEERED}, tuple(found.controls), random_like(name))
    how = {"level": level, "seed": seed}
    means = {c: {metric: mean_of(each, how) for metric, each in of.items()} for c, of in values.items()}
    missing = [
        f"{int(np.isnan(each).sum())} of {len(each)} prompts have no {metric} ({condition}) and are left out of it."
        for condition, of in values.items()
        for metric, each in of.items()
        if np.isnan(each).any()
    ]
    effects = {against: dict(found.effects.get(against, {})) for against in values if against != STEERED}
    for against, each in effects.items():
        both = np.isfinite(values[STEERED]["repetition"]) & np.isfinite(values[against]["repetition"])
        if both.sum() > 1:
            mine, other = (values[of]["repetition"][both] for of in (STEERED, against))
            each["repetition"] = paired(mine, other, **how)
    return dataclasses.replace(
        found,
        figures={**found.figures, **means[STEERED]},
        baseline={**found.baseline, **means[UNSTEERED]},
        controls={control: {**each, **means[control]} for control, each in found.controls.items()},
        effects={against: each for against, each in effects.items() if each},
        notes=(*found.notes, *missing),
    )


def fluency(
    effect: VectorComparison, conditions: Mapping[str, str], draws: tuple[str, ...], random: str
) -> dict[str, dict[str, np.ndarray]]:
    """Repetition and distinct n-grams of the texts there are, a number for each prompt.

    Args:
        effect: the comparison.
        conditions: its conditions, by the name that they are to have.
        draws: the names of the random vectors, in the order in which they were drawn.
        random: the condition that holds the texts of all of them.
    """
    once = len(effect.texts[UNSTEERED])
    texts = {name: effect.texts[condition] for name, condition in conditions.items()}
    for i, name in enumerate(draws):
        texts[name] = effect.texts[random][i * once : (i + 1) * once]
    prompts = list(effect.prompts) * (once // len(effect.prompts))
    metrics = as_metrics(list(FLUENCY))
    return {
        name: {metric: by_prompt(each, prompts) for metric, each in measure(metrics, list(some), Setting()).items()}
        for name, some in texts.items()
    }


def costs_of(found: Outcome) -> Costs:
    """The side effects beyond their bounds, or that may be."""
    measured, possible = [], []

    def judge(value: Estimate | None, bound: float, clause: str, upto: str, scale: float = 1.0, unit: str = "") -> None:
        if value is None or not value.n:
            return
        low, mean, high = (shown(scale * each) for each in (value.low, value.mean, value.high))
        if value.mean > bound:
            ends = "" if math.isnan(value.low) else f" ({percent(value.level)} CI {low} to {high}{unit})"
            measured.append(f"{clause} {mean}{unit}{ends}")
        elif not value.high <= bound:
            possible.append(f"{upto} {high}{unit}" if math.isfinite(value.high) else f"{upto} any amount")

    ratio = found.figures.get("perplexity_ratio")
    if ratio is not None:
        rise = dataclasses.replace(ratio, mean=ratio.mean - 1, low=ratio.low - 1, high=ratio.high - 1)
        judge(
            rise, PERPLEXITY_RATIO - 1, "perplexity of plain text rises by", "perplexity that rises by up to", 100, " %"
        )
    judge(
        found.figures.get("kl"),
        KL,
        "next tokens of plain text differ by a KL of",
        "a KL of plain text of up to",
        1,
        " nats",
    )
    plain = found.effects.get(UNSTEERED, {})
    judge(_of(plain, "repetition"), REPETITION, "repetition rises by", "repetition that rises by up to")
    judge(
        _of(plain, "accuracy", -1),
        ACCURACY,
        "accuracy on questions falls by",
        "accuracy that falls by up to",
        100,
        " points",
    )
    return Costs(tuple(measured), tuple(possible))


def _of(differences: Mapping[str, Difference], name: str, sign: int = 1) -> Estimate | None:
    """A difference with its interval, turned round where less is worse."""
    if name not in differences:
        return None
    found = differences[name].estimate
    ends = sorted((sign * found.low, sign * found.high)) if not math.isnan(found.low) else (math.nan, math.nan)
    return dataclasses.replace(found, mean=sign * found.mean, low=ends[0], high=ends[1])
