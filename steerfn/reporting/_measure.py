"""The measurements of a report: the side effects of steering, and the separation of the data's two sides.

Side effects are compared with bounds that are usually accepted; the sides are separated at every layer by a direction
of its own, and by the vector itself.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from steerfn.datasets import ContrastSet, describe_texts
from steerfn.discover import LintReport, Profile, Quality, auc, auc_interval, contrast, layer_profile, lint_pairs
from steerfn.evaluate import (
    FEWEST_DRAWS,
    RANDOM,
    STEERED,
    UNSTEERED,
    Difference,
    Estimate,
    Outcome,
    VectorComparison,
    analyse,
    mean_of,
    protocols,
    random_like,
)
from steerfn.metrics import Setting, as_metrics, measure
from steerfn.output import format_number, percent, quantity
from steerfn.run import Chat, Position, plan, position_name, position_named, run
from steerfn.values import Site, SteeringVector, SteerWarning, resid_post, unit

PERPLEXITY_RATIO = 1.1
"""The default bound of `calibrate`."""
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
    groups: Mapping[str, Any],
    **options: Any,
) -> Outcome:
    """`protocols.side_effects`, with the fluency of the texts that were generated for the effect already.

    The random vectors are the first of those of the effect: they are drawn with `seed`, `seed + 1`, ...

    Args:
        questions: questions with two answers, or None.
        effect: the comparison, with its texts.
        name: the vector's name in it.
        level: of the intervals.
        seed: of the random vectors and resamples.
        controls: the random vectors of the effect.
        groups: labels of passages and questions, where these have any.
        options: what the protocol takes.
    """
    outcome = protocols.side_effects(
        model, tokenizer, vector, passages, questions=questions, level=level, seed=seed,
        controls=min(controls, FEWEST_DRAWS), groups=groups or None, **options,
    )  # fmt: skip
    how = {"level": level, "seed": seed}
    values = fluency(effect)
    means = {
        side: {metric: mean_of(of[condition], how) for metric, of in values.items()}
        for side, condition in ((STEERED, name), (UNSTEERED, UNSTEERED), (RANDOM, random_like(name)))
    }
    units = len(set(effect.unit_of))
    missing = [
        f"{units - each.n} of {quantity(units, unit_of(effect))} have no {metric} ({side}) and are left out of it."
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
    effects = {against: dict(outcome.effects.get(against, {})) for against in (UNSTEERED, RANDOM)}
    for pair in pairs:
        if pair.n > 1:
            p = pair.p if pair.p == pair.p else pair.difference.p
            side = effects[UNSTEERED if pair.against == "unsteered" else RANDOM]
            side["repetition"] = dataclasses.replace(pair.difference, p=p, left_out=pair.left_out)
    return dataclasses.replace(
        outcome,
        figures={**outcome.figures, **means[STEERED]},
        baseline={**outcome.baseline, **means[UNSTEERED]},
        controls={RANDOM: {**outcome.controls.get(RANDOM, {}), **means[RANDOM]}},
        effects={against: each for against, each in effects.items() if each},
        notes=(*outcome.notes, *missing),
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


def costs_of(outcome: Outcome) -> Costs:
    """The side effects beyond their bounds, or that may be."""
    measured, possible = [], []

    def judge(value: Estimate | None, bound: float, clause: str, upto: str, scale: float = 1.0, unit: str = "") -> None:
        if value is None or not value.n:
            return
        low, mean, high = (format_number(scale * each) for each in (value.low, value.mean, value.high))
        if value.mean > bound:
            ends = "" if math.isnan(value.low) else f" ({percent(value.level)} CI {low} to {high}{unit})"
            measured.append(f"{clause} {mean}{unit}{ends}")
        elif not value.high <= bound:
            possible.append(f"{upto} {high}{unit}" if math.isfinite(value.high) else f"{upto} any amount")

    ratio = outcome.figures.get("perplexity_ratio")
    if ratio is not None:
        rise = dataclasses.replace(ratio, mean=ratio.mean - 1, low=ratio.low - 1, high=ratio.high - 1)
        clauses = "perplexity of plain text rises by", "perplexity that rises by up to"
        judge(rise, PERPLEXITY_RATIO - 1, *clauses, 100, " %")
    clauses = "next tokens of plain text differ by a KL of", "a KL of plain text of up to"
    judge(outcome.figures.get("kl"), KL, *clauses, 1, " nats")
    plain = outcome.effects.get(UNSTEERED, {})
    judge(_of(plain, "repetition"), REPETITION, "repetition rises by", "repetition that rises by up to")
    clauses = "accuracy on questions falls by", "accuracy that falls by up to"
    judge(_of(plain, "accuracy", -1), ACCURACY, *clauses, 100, " points")
    return Costs(tuple(measured), tuple(possible))


def _of(differences: Mapping[str, Difference], name: str, sign: int = 1) -> Estimate | None:
    """A difference with its interval, turned round where less is worse."""
    if name not in differences:
        return None
    mean = differences[name].estimate
    ends = sorted((sign * mean.low, sign * mean.high)) if not math.isnan(mean.low) else (math.nan, math.nan)
    return dataclasses.replace(mean, mean=sign * mean.mean, low=ends[0], high=ends[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Separation:
    """The evidence of the data for the vector, and what could be wrong with the data.

    Attributes:
        position: which token of each text was read.
        chat: whether texts went into the chat template.
        profile: the mean difference of the data at every layer and at the vector's sites, cross-validated.
        aucs: by site of the vector, the area under the ROC curve of `<h, v>`, positive against negative texts.
        intervals: of these, 95 %.
        shares: by site, `|v|` over the mean `|h|`.
        lint: what `lint_pairs` found.
    """

    position: str | int | list[int]
    chat: Chat
    profile: Profile
    aucs: dict[Site, float]
    intervals: dict[Site, tuple[float, float]]
    shares: dict[Site, float]
    lint: LintReport

    @property
    def best(self) -> Quality:
        """The quality of the layer with the highest AUC, or of the first where no layer has one."""
        known = [each for _, each in self.profile if each.auc is not None]
        return dict(self.profile)[self.profile.best()] if known else self.profile.table[0][1]


def separation(
    model: Any,
    tokenizer: Any,
    vector: SteeringVector,
    data: ContrastSet,
    *,
    position: Position | None,
    batch_size: int | str,
    groups: Any,
    seed: int,
    progress: bool,
) -> Separation:
    """Read the data where the vector says that it was read, and see how far its sides are apart.

    Args:
        vector: with its layers counted from 0.
        position: where to read; None is where the vector was read.
        groups: a label for each pair or text, as `quality` takes them, or None.
    """
    where, chat = read_as(vector, data)
    position = where if position is None else position
    elsewhere = [site for site in vector.sites if site.kind != "resid_post"]
    with warnings.catch_warnings():
        # Too few texts to cross-validate: the report says so where the number would be.
        warnings.filterwarnings("ignore", "The direction could not be cross-validated", SteerWarning)
        profile = layer_profile(
            model, tokenizer, data.positive, data.negative, sites=[resid_post[:], *elsewhere], position=position,
            chat=chat, batch_size=batch_size, groups=groups, seed=seed, progress=progress,
        )  # fmt: skip
    aucs, shares = measure_vector(model, tokenizer, vector, data, position, chat, batch_size, progress)
    counts = len(data.positive), len(data.negative)
    units = describe_texts(counts, groups=groups).sides
    intervals = {site: auc_interval(area, *units) for site, area in aucs.items()}
    return Separation(position_name(position), chat, profile, aucs, intervals, shares, lint_pairs(data))


def read_as(vector: SteeringVector, data: ContrastSet) -> tuple[Position, Chat]:
    """Where the vector says its texts were read, as far as the data can be read so; else the last token."""
    position_read, chat = vector.metadata.get("position"), vector.metadata.get("chat", False)
    position = position_named(position_read)
    if position is None or (position == "answer" and not data.paired):
        position = "last"
    return position, chat if chat is None or isinstance(chat, (bool, Mapping)) else False


def measure_vector(
    model: Any,
    tokenizer: Any,
    vector: SteeringVector,
    data: ContrastSet,
    position: Position,
    chat: Chat,
    batch_size: int | str,
    progress: bool,
) -> tuple[dict[Site, float], dict[Site, float]]:
    """The AUC of `<h, v>` and `|v| / mean |h|`, by site."""
    texts = contrast(tokenizer, data.positive, data.negative, position=position, chat=chat, paired=False)
    scores = {site: torch.zeros(len(texts.reads), dtype=torch.float64) for site in vector.sites}
    lengths = {site: 0.0 for site in vector.sites}
    for batch in run(model, plan(model, texts.reads, vector.sites, batch_size=batch_size), progress=progress):
        for site in vector.sites:
            states = batch.states[site].detach().double().cpu()
            axis = unit(vector[site].detach().double().cpu())
            scores[site][batch.texts] = states @ axis
            lengths[site] += float(states.norm(dim=-1).sum())
    n = texts.positive
    typical = {site: total / len(texts.reads) for site, total in lengths.items()}
    return (
        {site: auc(each[:n], each[n:]) for site, each in scores.items()},
        {site: norm / typical[site] if typical[site] else 0.0 for site, norm in vector.magnitude.items()},
    )


def unit_of(effect: VectorComparison) -> str:
    """The unit of observation of an effect: a prompt, or a group of prompts."""
    return "group of prompts" if effect.about.get("groups") else "prompt"
