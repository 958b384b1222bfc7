"""What steering costs: side effects by their protocol, and how far they are beyond what is usually put up with."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from steerfn._vector import SteeringVector
from steerfn.evaluate import Difference, Estimate, Outcome, VectorComparison, protocols
from steerfn.evaluate._against_random import FEWEST_DRAWS
from steerfn.evaluate._outcome import RANDOM, STEERED
from steerfn.evaluate._pairs import UNSTEERED, analyse, mean_of, random_like
from steerfn.evaluate._shown import percent, shown
from steerfn.metrics._metric import Setting, as_metrics, measure

PERPLEXITY_RATIO = 1.1
"""As `calibrate` puts up with unless told otherwise."""
KL = 0.1
"""Nats for each token of plain text. The number is that of Arditi et al. 2024, who bound another quantity: the
divergence at the last token of harmless prompts, with the direction ablated."""
REPETITION = 0.05
"""A share of n-grams that readers begin to notice."""
ACCURACY = 0.05
"""A loss that is more than rounding in a table."""
FLUENCY = ("repetition", "distinct_n")


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
        controls=min(controls, FEWEST_DRAWS), **options,
    )  # fmt: skip
    how = {"level": level, "seed": seed}
    values = fluency(effect)
    means = {
        side: {metric: mean_of(of[condition], how) for metric, of in values.items()}
        for side, condition in ((STEERED, name), (UNSTEERED, UNSTEERED), (RANDOM, random_like(name)))
    }
    units = len(set(effect.unit_of))
    missing = [
        f"{units - each.n} of {units} prompts have no {metric} ({side}) and are left out of it."
        for side, of in means.items()
        for metric, each in of.items()
        if each.n < units
    ]
    pairs = analyse(
        {"repetition": values["repetition"]},
        [(name, UNSTEERED, "unsteered"), (name, random_like(name), "random")],
        blocks={random_like(name): effect.blocks},
        **how,
    )
    effects = {against: dict(found.effects.get(against, {})) for against in (UNSTEERED, RANDOM)}
    for pair in pairs:
        if pair.n > 1:
            p = pair.p if pair.p == pair.p else pair.difference.p
            side = effects[UNSTEERED if pair.against == "unsteered" else RANDOM]
            side["repetition"] = dataclasses.replace(pair.difference, p=p, left_out=pair.left_out)
    return dataclasses.replace(
        found,
        figures={**found.figures, **means[STEERED]},
        baseline={**found.baseline, **means[UNSTEERED]},
        controls={RANDOM: {**found.controls.get(RANDOM, {}), **means[RANDOM]}},
        effects={against: each for against, each in effects.items() if each},
        notes=(*found.notes, *missing),
    )


def fluency(effect: VectorComparison) -> dict[str, dict[str, np.ndarray]]:
    """Repetition and distinct n-grams of the texts there are, by metric and condition, as `analyse` takes them."""
    metrics = as_metrics(list(FLUENCY))
    return {
        metric: {
            condition: effect.by_unit(measure({metric: each}, list(texts), Setting())[metric])
            for condition, texts in effect.texts.items()
        }
        for metric, each in metrics.items()
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
