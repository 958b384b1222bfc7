"""Steerability: how far a unit of strength moves each item, and how many it moves the wrong way."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange
from typing_extensions import Unpack

from steerfn.evaluate._configs import alphas_of
from steerfn.evaluate._outcome import STEERED, Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._statistics import Estimate
from steerfn.evaluate._tally import bootstrap_statistic, records_of
from steerfn.evaluate.protocols._choices import Choices, choices, questions_of
from steerfn.evaluate.protocols._data import Items
from steerfn.evaluate.protocols._run import ProtocolRun, SteeringOptions
from steerfn.model import Model, Tokenizer
from steerfn.operators import generated
from steerfn.values import DataError, SteeringVector, public

SOURCE = "Tan et al. 2024, Analyzing the Generalization and Reliability of Steering Vectors"
ALPHAS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)


@public
def steerability(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    data: Items,
    *,
    alphas: Sequence[float] = ALPHAS,
    both_orders: bool = True,
    **options: Unpack[SteeringOptions],
) -> Outcome:
    """Steerability by item: the least-squares slope of `log p(positive) - log p(negative)` on the strength.

    Letters are asked for as in `caa`, in both orders of the options; the log-odds of an item are the mean of the two,
    so a preference for a letter moves no slope. In nats per unit of alpha.

    Figures:

    - `slope`: the mean over items;
    - `spread`: the standard deviation of the items' slopes (percentile bootstrap interval);
    - `anti_steerable`: the share of items whose slope is 0 or less (Wilson's interval);
    - `letter_bias` (letters asked for in both orders): the slope where the positive answer has the earlier letter minus
      the slope where it has the later one. It is the steerability bias of the paper: a vector that moves a letter,
      whatever it stands for, moves these apart and not their mean.

    An unsteered model's slope is 0 by definition; that is what "unsteered" is compared with.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vector: the vector.
        data: questions, or the path of a file, as in `caa`; Anthropic's Yes and No questions too.
        alphas: the strengths, at least two.
        both_orders: False asks each question in the order of the file only.
        options: what every protocol takes, see `SteeringOptions`; `scope=sf.generated` is the default.

    Raises:
        DataError: as `caa`, or fewer than two strengths.
        FileError: a file that cannot be read.

    Source: Tan et al. 2024, "Analyzing the Generalization and Reliability of Steering Vectors".

    Example:
        >>> import steerfn as sf
        >>> item = {"question": "Shall we go?\\n (A) Yes\\n (B) No", "answer_matching_behavior": " (A)"}
        >>> item["answer_not_matching_behavior"] = " (B)"
        >>> outcome = sf.protocols.steerability(model, tokenizer, v, [item], alphas=[-1, 1])
        >>> 0 <= outcome.figures["anti_steerable"].mean <= 1
        True
    """
    run = ProtocolRun.of("steerability", options, scope=generated)
    strengths = alphas_of(alphas)
    if len(strengths) < 2:
        raise DataError(f"A slope needs at least two strengths, not {strengths}; pass more alphas.")
    questions, units = run.select_items(questions_of(data))
    by_name = run.strengths(model, vector, strengths)
    ops = [op for each in by_name.values() for op in each]
    answers = choices(run, model, tokenizer, questions, ops, both_orders)
    propensity = rearrange(
        answers.by_item(answers.log_odds), "(vector strength) item -> vector strength item", vector=len(by_name)
    )
    bias = _letter_bias(answers, strengths, len(by_name))
    values: dict[str, dict[str, np.ndarray]] = {}
    also: dict[str, dict[str, Estimate]] = {}
    for name, numbers in zip(by_name, propensity, strict=True):
        slopes = slope(strengths, numbers)
        values[name] = {"slope": slopes, "anti_steerable": (slopes <= 0).astype(np.float64)}
        if bias is not None:
            values[name]["letter_bias"] = bias[len(also)]
        also[name] = {"spread": bootstrap_statistic(_deviation, slopes, units, level=run.level, seed=run.seed)}
    items = [{"question": q.text, "positive": q.positive, "negative": q.negative} for q in questions]
    curves = {
        name: {**values[name], "propensity": numbers.T} for name, numbers in zip(by_name, propensity, strict=True)
    }
    plain = {UNSTEERED: {"slope": np.zeros(len(questions))}}
    steered = {STEERED: values.pop(STEERED)}
    whole = run.outcome(
        SOURCE,
        {**steered, **plain, **values},
        rates=("anti_steerable",),
        compared=("slope",),
        also=also,
        records=records_of(items, curves),
        about=run.about(model, ops, items, alphas=strengths, both_orders=both_orders),
        units=units,
    )
    return dataclasses.replace(whole, baseline={})  # its slope is no finding


@public
def slope(alphas: Sequence[float], propensities: Any) -> np.ndarray:
    """The least-squares slope of each item, `sum_a (a - mean a) y_a / sum_a (a - mean a)^2`.

    Args:
        alphas: the strengths.
        propensities: `[alphas, items]`.

    Example:
        >>> import steerfn as sf
        >>> sf.protocols.slope([-1, 0, 1], [[0.0, 1.0], [1.0, 0.5], [2.0, 0.0]]).tolist()
        [1.0, -0.5]
    """
    off = np.asarray(alphas, np.float64) - np.mean(alphas)
    return off @ np.asarray(propensities, np.float64) / (off @ off)


def _letter_bias(answers: Choices, alphas: Sequence[float], vectors: int) -> np.ndarray | None:
    """The slope of the earlier letter minus that of the later one, `[vectors, items]`; None without both orders."""
    if not answers.is_swapped.any() or np.isnan(answers.first).any():
        return None
    by_vector = rearrange(answers.log_odds, "(vector strength) version -> vector strength version", vector=vectors)
    slopes = np.stack([slope(alphas, each) for each in by_vector])
    sign = np.where(answers.first == 1, 1.0, -1.0)
    return 2 * answers.by_item(slopes * sign)  # the mean over an item's two versions, doubled, is their difference


def _deviation(slopes: np.ndarray) -> np.ndarray:
    return slopes.std(axis=-1, ddof=1)
