"""Side effects: what a vector does to text, knowledge and fluency that it was not meant to touch.

And to a model's reading of plain text: cross-entropy, and the divergence from the unsteered model.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from steerfn.evaluate._outcome import Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._statistics import Estimate, by_prompt, estimate
from steerfn.evaluate._tally import exponential, records_of
from steerfn.evaluate.protocols._choices import choices, questions_of
from steerfn.evaluate.protocols._data import Items, texts_of
from steerfn.evaluate.protocols._run import ProtocolRun, SteeringOptions
from steerfn.metrics import Setting, as_metrics, measure
from steerfn.model import Model, Tokenizer
from steerfn.operators import Operator, identity
from steerfn.output import progress_bar
from steerfn.run import Budget, Decoding, Predictor, Text, encode, limit_of
from steerfn.values import DataError, SteeringVector, integer, public

SOURCE = "perplexity as in Turner et al. 2023, MMLU as in Rimsky et al. 2024, KL as in Arditi et al. 2024"
FLUENCY = ("repetition", "distinct_n")
FIGURES = {"data": ("cross_entropy", "kl"), "questions": ("accuracy", "p_correct"), "prompts": FLUENCY}
"""The figures of each kind of items."""

Conditions = Mapping[str, Operator | None]
Values = dict[str, dict[str, np.ndarray]]


@public
def side_effects(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    data: Items,
    *,
    alpha: float = 1.0,
    questions: Items | None = None,
    prompts: Items | None = None,
    max_tokens: int = 256,
    both_orders: bool = True,
    max_new_tokens: int = 40,
    generation: Mapping[str, Any] | None = None,
    **options: Unpack[SteeringOptions],
) -> Outcome:
    """The side effects of steering: perplexity of plain text, distance from the unsteered model, knowledge, repetition.

    Figures, with each text's mean over its tokens but the first:

    - `cross_entropy`: `-log p(token | tokens before)` of plain text, in nats per token;
    - `perplexity`: `exp` of its mean over texts, and `perplexity_ratio`, `exp` of the mean difference from the
      unsteered model: 1.1 is 10 % worse;
    - `kl`: `KL(unsteered || steered)` of the next-token distribution, in nats;
    - `accuracy`, `p_correct` (with `questions`): how often, and with which share, the correct one of two answers is
      preferred, as in `caa`;
    - `repetition`, `distinct_n` (with `prompts`): of generated texts, see `sf.metrics`; steered small models loop.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vector: the vector.
        data: plain texts, or the path of a file of them, that have nothing to do with the vector's behaviour.
        alpha: the strength.
        questions: questions with two answers, or a path, as in `caa`; CAA's `mmlu_ab.json` for one.
        prompts: prompts to generate from, or a path.
        max_tokens: what comes after so many tokens of a text is left out; divide long texts instead.
        both_orders: ask questions in both orders of their options.
        max_new_tokens: tokens of a generated text at most.
        generation: more of what transformers' `generate` takes.
        options: what every protocol takes, see `SteeringOptions`. All tokens are steered by default; `limit` counts
            texts, questions and prompts each, and `groups` is a mapping of `data`, `questions` and `prompts` to labels,
            or has them in this order.

    Raises:
        DataError: texts, questions or prompts without words, or texts of one token only.
        FileError: a file that cannot be read.

    Source: Turner et al. 2023, "Activation Addition" (perplexity); Rimsky et al. 2024 (MMLU between two answers);
    Arditi et al. 2024 (KL).

    Example:
        >>> import steerfn as sf
        >>> texts = ["The committee met on Tuesday and adjourned at noon.", "Rain is expected in the north."]
        >>> outcome = sf.protocols.side_effects(model, tokenizer, v, texts, alpha=8.0)
        >>> outcome.figures["perplexity_ratio"].mean > 1.1
        True
    """
    run = ProtocolRun.of("side_effects", options, scope=None)
    max_tokens = integer("max_tokens", max_tokens, 2)
    kinds: dict[str, Any] = {"data": texts_of(data, "data")}
    kinds |= {} if questions is None else {"questions": questions_of(questions, "questions")}
    kinds |= {} if prompts is None else {"prompts": texts_of(prompts, "prompts")}
    chosen = run.select_items_by_kind(kinds)
    (texts, units), (to_answer, _), (to_continue, _) = (chosen.get(kind, ([], [])) for kind in FIGURES)
    decoding = run.decoding(model, tokenizer, max_new_tokens, generation)
    ops = run.conditions(model, vector, alpha)
    values, also = _read(run, model, tokenizer, texts, units, ops, max_tokens)
    records = [{"kind": "text", **each} for each in records_of([{"text": text} for text in texts], values)]
    if to_answer:
        answers = choices(run, model, tokenizer, to_answer, list(ops.values()), both_orders)
        right, share = answers.by_item((answers.log_odds > 0).astype(np.float64)), answers.by_item(answers.p_match)
        mine = {name: {"accuracy": right[c], "p_correct": share[c]} for c, name in enumerate(ops)}
        records += [
            {"kind": "question", **each} for each in records_of([{"question": q.text} for q in to_answer], mine)
        ]
        _add(values, mine)
    if to_continue:
        mine, written = _generate(run, model, tokenizer, to_continue, ops, decoding)
        told = {name: {**mine[name], "text": written[c]} for c, name in enumerate(ops)}
        records += [{"kind": "generation", **each} for each in records_of([{"prompt": p} for p in to_continue], told)]
        _add(values, mine)
    items = {"texts": texts, "questions": [[q.text, q.positive, q.negative] for q in to_answer], "prompts": to_continue}
    return run.outcome(
        SOURCE,
        values,
        compared=("cross_entropy", "kl", "accuracy", "repetition"),
        also=also,
        records=records,
        about=run.about(
            model, list(ops.values()), items, alpha=alpha, max_tokens=max_tokens, both_orders=both_orders,
            max_new_tokens=max_new_tokens, generation=generation, decoding=decoding.name,
        ),
        units={name: chosen[kind][1] for kind in chosen for name in FIGURES[kind]},
    )  # fmt: skip


def _add(values: Values, more: Values) -> None:
    for condition, figures in more.items():
        values[condition] |= figures


def _read(
    run: ProtocolRun, model: Any, tokenizer: Any, texts: list[Text], units: list[int], ops: Conditions, max_tokens: int
) -> tuple[Values, dict[str, dict[str, Estimate]]]:
    """The figures of plain text, and the estimates that are no means."""
    read = reading(run, model, tokenizer, texts, list(ops.values()), max_tokens)
    if not (read.tokens > 0).any():
        raise DataError("Every text has a single token, so nothing is predicted; pass longer texts.")
    plain = read.cross_entropy[list(ops).index(UNSTEERED)]
    values: Values = {}
    also: dict[str, dict[str, Estimate]] = {}

    def over_units(numbers: np.ndarray) -> Estimate:
        means = by_prompt(numbers, units)
        return exponential(estimate(means[~np.isnan(means)], level=run.level, seed=run.seed))

    for c, condition in enumerate(ops):
        entropy = read.cross_entropy[c]
        values[condition] = {"cross_entropy": entropy}
        also[condition] = {"perplexity": over_units(entropy)}
        if condition != UNSTEERED:
            values[condition]["kl"] = read.kl[c]
            also[condition]["perplexity_ratio"] = over_units(entropy - plain)
    return values, also


def _generate(
    run: ProtocolRun,
    model: Any,
    tokenizer: Any,
    prompts: list[Text],
    ops: Conditions,
    decoding: Decoding,
) -> tuple[Values, list[list[str]]]:
    """The fluency of what is generated, and the texts."""
    texts = run.texts(model, tokenizer, encode(tokenizer, prompts, decoding.chat), list(ops.values()), decoding)
    values = measure(as_metrics(list(FLUENCY)), [text for row in texts for text in row], Setting())
    rows = {name: numbers.reshape(len(ops), -1) for name, numbers in values.items()}
    return {condition: {name: rows[name][c] for name in rows} for c, condition in enumerate(ops)}, texts


TOKENS = 512
"""Tokens of one pass, padding included: their logits over the whole vocabulary are all kept for a while."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """Numbers of each text, the mean over its tokens but the first; NaN for a text of one token.

    Attributes:
        cross_entropy: `-log p(token | tokens before)`, in nats, `[operators, texts]`.
        kl: `KL(unsteered || steered)` of the next-token distribution, in nats, `[operators, texts]`.
        tokens: how many tokens were predicted, `[texts]`.
    """

    cross_entropy: np.ndarray
    kl: np.ndarray
    tokens: np.ndarray


def reading(
    run: ProtocolRun, model: Any, tokenizer: Any, texts: Sequence[Text], ops: Sequence[Operator | None], max_tokens: int
) -> Reading:
    """Read every text under every operator.

    For scopes a text's first token is the prompt and all after it is generated, so `sf.generated` and `sf.everywhere`
    steer all that predicts something. Text is read as it is, whatever `chat` says, and after `max_tokens` cut off.
    """
    predict = Predictor.of(model, tokenizer)
    rows = [ids[:max_tokens] for ids in encode(tokenizer, texts, False)]
    order = sorted((i for i in range(len(rows)) if len(rows[i]) > 1), key=lambda i: -len(rows[i]))
    entropy, kl = (np.full((len(ops), len(rows)), np.nan) for _ in range(2))

    def read(some: Sequence[int]) -> None:
        batch, places = [rows[i] for i in some], torch.arange(len(rows[some[0]]) - 1)
        plain = predict(identity, batch, places, [1] * len(batch))
        for c, op in enumerate(ops):
            logits = plain if op is None else predict(op, batch, places, [1] * len(batch))
            for r, i in enumerate(some):
                entropy[c, i], kl[c, i] = _of_row(plain[r], logits[r], rows[i])

    budget = Budget(limit_of(run.batch_size), TOKENS)
    with torch.no_grad(), progress_bar("Reading texts", "text", run.progress, total=len(order)) as bar:
        for some, _ in budget.run(order, read, lambda i: len(rows[i])):
            bar.update(len(some))
    return Reading(entropy, kl, np.array([len(row) - 1 for row in rows]))


def _of_row(plain: Tensor, logits: Tensor, ids: Sequence[int]) -> tuple[float, float]:
    """The cross-entropy and the divergence of one text, from logits `[longest - 1, vocabulary]`."""
    n = len(ids) - 1
    usual, changed = plain[:n].log_softmax(-1), logits[:n].log_softmax(-1)
    following = torch.tensor(ids[1:], device=changed.device)
    kl = torch.nn.functional.kl_div(changed, usual, reduction="none", log_target=True).sum(-1)
    return -float(changed[torch.arange(n), following].double().mean()), float(kl.double().mean().clamp_min(0))
