"""AxBench's steering: concept, instruction and fluency at once, at a strength chosen on other prompts.

Its three questions of a text are answered by whom you name, or offline by a stand-in of three small scorers with fixed
cuts, which is no language model: what its ratings share with those of AxBench is the scale and nothing else, so never
compare them with published figures.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from typing_extensions import Unpack

from steerfn.datasets import held_out as hold_out
from steerfn.evaluate._configs import alphas_of
from steerfn.evaluate._outcome import Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate.protocols._data import Items, texts_of
from steerfn.evaluate.protocols._run import ProtocolRun, SteeringOptions
from steerfn.metrics import AXBENCH, Metric, Setting, as_metrics, measure
from steerfn.metrics import judge as judge_by
from steerfn.model import Model, Tokenizer, layout, unwrap_model
from steerfn.operators import Operator, as_vector
from steerfn.run import Text, as_texts, encode, input_device
from steerfn.values import DataError, SteeringVector, public
from steerfn.verbs import capture

PARTS = ("concept", "instruction", "fluency")
"""Is the concept in the text, does the text do what the prompt asks, does it read well: 0, 1 or 2 each."""
BEST = 2.0

Judge = str | Mapping[str, Any] | Callable[[Sequence[str], Sequence[Text]], Any]


@public
def harmonic(ratings: Any) -> np.ndarray:
    """The harmonic mean of ratings along the last axis, `n / sum 1/r`; 0 where one of them is 0.

    Args:
        ratings: `[..., n]`, from 0 up.

    Source: Wu et al. 2025, "AxBench".

    Example:
        >>> import steerfn as sf
        >>> sf.protocols.harmonic([[2, 2, 2], [1, 2, 2], [0, 2, 2]]).tolist()
        [2.0, 1.5, 0.0]
    """
    rated = np.asarray(ratings, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where((rated == 0).any(-1), 0.0, rated.shape[-1] / (1 / rated).sum(-1))


@public
def axbench_judge(ask: Callable[[Any], Any], concept: str, *, batched: bool = False) -> dict[str, Metric]:
    """A language model as AxBench's judge: `sf.metrics.judge` with the templates of `sf.metrics.AXBENCH`.

    Args:
        ask: takes a question and gives the answer: `sf.metrics.endpoint(...)`, or any function.
        concept: what the vector stands for, in words.
        batched: `ask` takes the list of all questions.

    Returns:
        What `axbench(judge=...)` takes.

    Raises:
        DataError: no concept, or an `ask` that cannot be called.

    Source: Wu et al. 2025, "AxBench"; the questions are in words of our own.

    Example:
        >>> import steerfn as sf
        >>> judge = sf.protocols.axbench_judge(lambda question: "Rating: [[1]]", "rental services")
        >>> judge["fluency"](["Some text."])
        [1.0]
    """
    options: dict[str, Any] = {"scale": (0.0, BEST), "batched": batched}
    judges = {part: functools.partial(judge_by, ask, AXBENCH[part], part, **options) for part in PARTS}
    return {part: make(concept=concept) if part == "concept" else make() for part, make in judges.items()}


def ratings_of(judge: Judge, concept: str, texts: Sequence[str], setting: Setting) -> np.ndarray:
    """The three ratings of each text, `[texts, 3]`; NaN where the judge gave none.

    Raises:
        DataError: a judge that is neither 'offline' nor a mapping nor a function, or ratings outside 0 to 2.
    """
    if isinstance(judge, str) and judge == OFFLINE:
        ratings = offline(texts, concept, setting)
    elif isinstance(judge, Mapping):
        if set(judge) != set(PARTS):
            raise DataError(
                f"judge has the keys {', '.join(map(str, judge))}; it needs a metric for each of {', '.join(PARTS)}."
            )
        metrics = {part: as_metrics([judge[part]]) for part in PARTS}
        ratings = np.stack([next(iter(measure(metrics[part], texts, setting).values())) for part in PARTS], axis=1)
    elif callable(judge):
        ratings = judge(texts, list(setting.prompts or ()))
    else:
        raise DataError(
            f"judge must be 'offline', a mapping of {', '.join(PARTS)} to metrics, or a function, not {judge!r:.80}."
        )
    return _check_ratings(ratings, len(texts))


def _check_ratings(ratings: Any, texts: int) -> np.ndarray:
    try:
        rated = np.asarray(ratings, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"The judge must give three numbers for each text, not {ratings!r:.80}.") from None
    if rated.shape != (texts, len(PARTS)):
        raise DataError(
            f"The judge gave numbers of shape {rated.shape} for {texts} texts; it must give {len(PARTS)} for each: "
            f"{', '.join(PARTS)}."
        )
    off = rated[~np.isnan(rated) & ((rated < 0) | (rated > BEST))]
    if len(off):
        raise DataError(f"The judge gave a rating of {off[0]:g}; ratings are 0, 1 or 2.")
    return rated


def judge_name(judge: Judge) -> str:
    """The name of a judge, for provenance."""
    if isinstance(judge, Mapping):
        metrics = {part: next(iter(as_metrics([judge[part]]).values())) for part in PARTS}
        return "; ".join(f"{part}: {each.name}. {each.about}".rstrip(". ") for part, each in metrics.items())
    return judge if isinstance(judge, str) else getattr(judge, "__name__", type(judge).__name__)


OFFLINE = "offline"
CONCEPT = (0.15, 0.25)
"""Cosines of a text with the concept's description from which a rating is 1, and 2. Of AxBench's own texts
those without a concept seldom reach the second; of those with it many do not either, and some reach neither."""
ANSWERED = (1 / 3, 2 / 3)
"""Probabilities of `helpfulness` from which a rating is 1, and 2."""
PERPLEXITY = (20.0, 60.0)
"""Perplexities up to which a rating is 2, and 1."""
REPEATED = (0.2, 0.5)
"""Shares of repeated 4-grams up to which a rating is 2, and 1."""
METRICS = ("semantic_similarity", "helpfulness", "perplexity", "repetition")


def offline(texts: Sequence[str], concept: str, setting: Setting) -> np.ndarray:
    """Ratings 0, 1 or 2 of the concept, the instruction and the fluency, `[texts, 3]`.

    - concept: the cosine of the text's MiniLM embedding with that of the concept's description: below 0.15 it is 0,
      from 0.25 it is 2. A text that speaks *about* the concept's topic and one that shows it are alike to it;
    - instruction: `helpfulness`, the probability that the text answers its prompt, in thirds;
    - fluency: the lower of the ratings of `perplexity` under the unsteered model (2 up to 20, 1 up to 60) and of
      `repetition` (2 up to 0.2, 1 up to 0.5).

    A text without a number, such as an empty one, gets 0. Perplexity tells fluent from broken among a model's own texts
    alone: a person's sentence is often as unexpected to a small model as broken ones are.
    """
    with_concept = dataclasses.replace(setting, references=[concept] * len(texts))
    numbers = measure(as_metrics(list(METRICS)), texts, with_concept)
    return np.stack(
        [
            reached_cuts(numbers["semantic_similarity"], CONCEPT),
            reached_cuts(numbers["helpfulness"], ANSWERED),
            np.minimum(within(numbers["perplexity"], PERPLEXITY), within(numbers["repetition"], REPEATED)),
        ],
        axis=1,
    )


def reached_cuts(values: Any, cuts: Sequence[float]) -> np.ndarray:
    """How many of the ascending cuts each value reaches; 0 for NaN.

    Example:
        >>> reached_cuts([0.1, 0.2, 0.9], (0.2, 0.5)).tolist()
        [0.0, 1.0, 2.0]
    """
    return (np.asarray(values, dtype=np.float64)[..., None] >= np.asarray(cuts)).sum(-1, dtype=np.float64)


def within(values: Any, cuts: Sequence[float]) -> np.ndarray:
    """How many of the cuts each value stays within; 0 for NaN.

    Example:
        >>> within([10, 30, 90], (20, 60)).tolist()
        [2.0, 1.0, 0.0]
    """
    return (np.asarray(values, dtype=np.float64)[..., None] <= np.asarray(cuts)).sum(-1, dtype=np.float64)


SOURCE = "Wu et al. 2025, AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders"
SAMPLING = {"do_sample": True, "temperature": 1.0}
"""As in the paper's code."""
FACTORS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0)


@public
def axbench(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    data: Items,
    *,
    concept: str,
    judge: Judge = OFFLINE,
    alphas: Sequence[float] = FACTORS,
    activating: Text | Iterable[Text] | None = None,
    max_new_tokens: int = 128,
    generation: Mapping[str, Any] | None = None,
    **options: Unpack[SteeringOptions],
) -> Outcome:
    """AxBench's steering score: the harmonic mean of three ratings from 0 to 2, 0 where one is 0.

    Half of the prompts choose the strength, by the mean score; the other half, which chose nothing, report. Every
    control chooses its own strength. A rating that the judge does not give counts as 0, as in the paper's code, and is
    counted in the notes.

    Figures:

    - `score`: the harmonic mean of the three ratings of a text, the mean over the reporting prompts;
    - `concept`: is the concept in the text; `instruction`: does the text do what the prompt asks; `fluency`: does it
      read well. From 0 to 2 each.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vector: the concept's vector.
        data: prompts that have nothing to do with the concept, or the path of a file of instructions.
        concept: what the vector stands for, in words.
        judge: who rates.

            - "offline": three small scorers with fixed cuts for 1 and 2: the cosine of the MiniLM embeddings of text
              and `concept` from 0.15 and 0.25, `helpfulness` from 1/3 and 2/3, and the lower of perplexity under the
              unsteered model (up to 60 and 20) and repetition (up to 0.5 and 0.2). They are no language model, and
              the outcome says so: its figures are not comparable with published ones;
            - a mapping of `concept`, `instruction` and `fluency` to metrics that give 0 to 2:
              `sf.protocols.axbench_judge(sf.metrics.endpoint(...), concept)` asks a language model;
            - a function of the texts and their prompts that gives three numbers for each text.
        alphas: the strengths to choose from; the default are the paper's factors.
        activating: texts with the concept. With them strengths are the paper's: factors of the concept's maximal
            activation, the largest `<h, v / |v|>` of any token of these texts but the first of each, along a vector of
            length 1. Without them they are factors of the vector as it is, often a third as far.
        max_new_tokens: tokens of a text at most; the paper has 128.
        generation: more of what transformers' `generate` takes; by default the paper's sampling at temperature 1.
        options: what every protocol takes, see `SteeringOptions`.

    Raises:
        DataError: fewer than two different prompts, no concept, or a judge that gives something else than ratings.
        FileError: a file that cannot be read.
        SteerError: the offline judge without the MiniLM package (extra `minilm`).

    Source: Wu et al. 2025, "AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders".

    Example:
        >>> import steerfn as sf
        >>> judge = sf.protocols.axbench_judge(lambda question: "Rating: [[1]]", "happiness")  # ask a model here
        >>> outcome = sf.protocols.axbench(
        ...     model, tokenizer, v, prompts, concept="happiness", judge=judge, alphas=[1, 2], max_new_tokens=4
        ... )
        >>> outcome.figures["score"].mean
        1.0
    """
    run = ProtocolRun.of("axbench", options, scope=None)
    if not isinstance(concept, str) or not concept.strip():
        raise DataError(f"concept must describe in words what the vector stands for, not {concept!r:.80}.")
    prompts, units = run.select_items(texts_of(data, "data"))
    # Prompts of one group choose or report together.
    alike = prompts if run.groups is None else [f"group {unit}" for unit in units]
    reports = np.array(hold_out(alike, 0.5, run.seed))
    if not reports.any():
        raise DataError("AxBench chooses a strength on half of the prompts; pass at least two different ones.")
    strengths, sampling = alphas_of(alphas), {**SAMPLING, **(generation or {})}
    decoding = run.decoding(model, tokenizer, max_new_tokens, sampling)
    reached = None if activating is None else maximal_activation(model, tokenizer, vector, activating)
    by_name = run.strengths(
        model, vector if reached is None else as_vector(vector, "axbench").unit() * reached, strengths
    )
    unreadable = 0

    def rate(some: list[Text], ops: list[Operator | None]) -> tuple[list[list[str]], np.ndarray]:
        """The texts and their ratings, `[operators, prompts, 3]`."""
        nonlocal unreadable
        texts = run.texts(model, tokenizer, encode(tokenizer, some, decoding.chat), ops, decoding)
        setting = Setting(
            prompts=some * len(ops),
            ops=[op for op in ops for _ in some],
            model=model,
            tokenizer=tokenizer,
            chat=run.chat,
        )
        ratings = ratings_of(judge, concept, [text for row in texts for text in row], setting)
        unreadable += int(np.isnan(ratings).sum())
        return texts, rearrange(np.nan_to_num(ratings), "(op prompt) part -> op prompt part", op=len(ops))

    choosing, reporting = (
        [p for p, out in zip(prompts, reports, strict=True) if out == side] for side in (False, True)
    )
    _, first = rate(choosing, [op for ops in by_name.values() for op in ops])
    scores = rearrange(harmonic(first), "(vector strength) prompt -> vector strength prompt", vector=len(by_name))
    chosen = {name: best(strengths, row) for name, row in zip(by_name, scores, strict=True)}
    ops: dict[str, Operator | None] = {name: each[strengths.index(chosen[name])] for name, each in by_name.items()}
    ops[UNSTEERED] = None
    texts, second = rate(reporting, list(ops.values()))
    values = {
        name: {"score": harmonic(second[c]), **{part: second[c, :, i] for i, part in enumerate(PARTS)}}
        for c, name in enumerate(ops)
    }
    return run.outcome(
        SOURCE,
        values,
        compared=("score", "concept", "fluency"),
        records=[
            {"item": p, "condition": name, "alpha": chosen.get(name, 0.0), "prompt": prompt, "text": texts[c][p]}
            | {figure: float(each[p]) for figure, each in values[name].items()}
            for c, name in enumerate(ops)
            for p, prompt in enumerate(reporting)
        ],
        notes=_notes(judge, chosen, len(choosing), len(reporting), unreadable),
        about=run.about(
            model, [*(op for each in by_name.values() for op in each), None], prompts, concept=concept,
            judge=judge_name(judge), alphas=strengths, chosen=chosen, max_new_tokens=max_new_tokens,
            generation=sampling, decoding=decoding.name, maximal_activation=reached,
        ),
        units=[unit for unit, out in zip(units, reports, strict=True) if out],
    )  # fmt: skip


def best(alphas: Sequence[float], scores: np.ndarray) -> float:
    """The strength with the highest mean score over prompts, `[alphas, prompts]`; of equals the weakest.

    A text without a score has 0, so that a strength that ruins most texts does not win by the others.
    """
    means = np.nan_to_num(np.asarray(scores, np.float64), nan=0.0).mean(-1)
    return max(zip(means, alphas, strict=True), key=lambda pair: (pair[0], -abs(pair[1])))[1]


def maximal_activation(model: Any, tokenizer: Any, vec: Any, texts: Any) -> float:
    """The largest `<h, v / |v|>` of any token of some texts, but the first of each, at the vector's site.

    Raises:
        DataError: no texts, or texts of one token; a vector at several sites, or one that no text reaches upwards.
    """
    vector = as_vector(vec, "axbench").resolve(layout(unwrap_model(model)).n_layers)
    if len(vector.sites) != 1:
        raise DataError(
            f"A concept's maximal activation is defined at one site, but the vector has {len(vector.sites)}; leave out "
            "activating=, or pass a vector at one site."
        )
    [site], [direction] = vector.sites, vector.unit().directions
    largest = -math.inf
    for ids in encode(tokenizer, as_texts(texts, "activating"), False):
        with torch.no_grad():
            _, states = capture(model, site)(input_ids=torch.tensor([ids], device=input_device(model)))
        along = states[site][0, 1:].float() @ direction.to(states[site].device).float()
        largest = max([largest, *along.tolist()])  # the first token is often an attention sink
    if not 0 < largest < math.inf:
        raise DataError(
            "No token of the activating texts lies along the vector's direction, so there is no maximal activation; "
            "pass longer texts that show the concept, or leave out activating=."
        )
    return largest


def _notes(judge: Judge, chosen: Mapping[str, float], choosing: int, reporting: int, unreadable: int) -> list[str]:
    strengths = ", ".join(f"{name} {alpha:g}" for name, alpha in chosen.items())
    notes = [f"Strengths chosen on {choosing} prompts ({strengths}), figures of the {reporting} others."]
    if unreadable:
        notes.append(f"{unreadable} ratings could not be read from the judge's answers and count as 0.")
    if judge == OFFLINE:
        notes.insert(
            0,
            "OFFLINE judge: small scorers with fixed cuts, no language model. Not comparable with published AxBench "
            "figures.",
        )
    return notes
