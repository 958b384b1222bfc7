"""Side effects: what a vector does to text, knowledge and fluency that it was not meant to touch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from typing_extensions import Unpack

from steerfn._errors import DataError
from steerfn._text import Text
from steerfn.evaluate._outcome import Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._statistics import Estimate, estimate
from steerfn.evaluate._tally import exponential, outcome, records_of
from steerfn.evaluate.protocols._choices import choices
from steerfn.evaluate.protocols._data import texts_of
from steerfn.evaluate.protocols._plain_text import reading
from steerfn.evaluate.protocols._question import questions_of
from steerfn.evaluate.protocols._run import Run, Steering
from steerfn.metrics._metric import Setting, as_metrics, measure
from steerfn.operators import Operator

SOURCE = "perplexity as in Turner et al. 2023, MMLU as in Rimsky et al. 2024, KL as in Arditi et al. 2024"
FLUENCY = ("repetition", "distinct_n")

Conditions = Mapping[str, Operator | None]
Values = dict[str, dict[str, np.ndarray]]


def side_effects(
    model: Any,
    tokenizer: Any,
    vec: Any,
    data: Any,
    *,
    alpha: float = 1.0,
    questions: Any = None,
    prompts: Any = None,
    max_tokens: int = 256,
    both_orders: bool = True,
    max_new_tokens: int = 40,
    generation: Mapping[str, Any] | None = None,
    **options: Unpack[Steering],
) -> Outcome:
    """What steering costs: perplexity of plain text, distance from the unsteered model, knowledge, and repetition.

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
        vec: the vector.
        data: plain texts, or the path of a file of them, that have nothing to do with the vector's behaviour.
        alpha: the strength.
        questions: questions with two answers, or a path, as in `caa`; CAA's `mmlu_ab.json` for one.
        prompts: prompts to generate from, or a path.
        max_tokens: what comes after so many tokens of a text is left out; divide long texts instead.
        both_orders: ask questions in both orders of their options.
        max_new_tokens: tokens of a generated text at most.
        generation: more of what transformers' `generate` takes.
        options: what every protocol takes, see `Steering`. All tokens are steered by default; `limit` counts texts,
            questions and prompts each.

    Raises:
        DataError: texts, questions or prompts without words, or texts of one token only.
        FileError: a file that cannot be read.

    Source: Turner et al. 2023, "Activation Addition" (perplexity); Rimsky et al. 2024 (MMLU between two answers);
    Arditi et al. 2024 (KL).

    Example:
        >>> import steerfn as sf
        >>> texts = ["The committee met on Tuesday and adjourned at noon.", "Rain is expected in the north."]
        >>> print(sf.protocols.side_effects(model, tokenizer, v, texts, alpha=2.0))  # doctest: +SKIP
    """
    run = Run.of("side_effects", options, scope=None)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 2:
        raise DataError(f"max_tokens is a number of tokens from 2, not {max_tokens!r}.")
    texts = run.chosen(texts_of(data, "data"))
    asked = [] if questions is None else run.chosen(questions_of(questions, "questions"))
    given = [] if prompts is None else run.chosen(texts_of(prompts, "prompts"))
    ops = run.conditions(model, vec, alpha)
    values, also = _read(run, model, tokenizer, texts, ops, max_tokens)
    records = [{"kind": "text", **each} for each in records_of([{"text": text} for text in texts], values)]
    if asked:
        found = choices(run, model, tokenizer, asked, list(ops.values()), both_orders)
        right, share = found.by_item((found.log_odds > 0).astype(np.float64)), found.by_item(found.p_match)
        mine = {name: {"accuracy": right[c], "p_correct": share[c]} for c, name in enumerate(ops)}
        records += [{"kind": "question", **each} for each in records_of([{"question": q.text} for q in asked], mine)]
        _add(values, mine)
    if given:
        mine, written = _generate(run, model, tokenizer, given, ops, max_new_tokens, generation)
        told = {name: {**mine[name], "text": written[c]} for c, name in enumerate(ops)}
        records += [{"kind": "generation", **each} for each in records_of([{"prompt": p} for p in given], told)]
        _add(values, mine)
    items = {"texts": texts, "questions": [[q.text, q.positive, q.negative] for q in asked], "prompts": given}
    return outcome(
        run.protocol,
        SOURCE,
        values,
        compared=("cross_entropy", "kl", "accuracy", "repetition"),
        also=also,
        records=records,
        about=run.about(
            model, list(ops.values()), items, alpha=alpha, max_tokens=max_tokens, both_orders=both_orders,
            max_new_tokens=max_new_tokens, generation=generation,
        ),
        draws=run.draws,
        level=run.level,
        seed=run.seed,
    )  # fmt: skip


def _add(values: Values, more: Values) -> None:
    for condition, found in more.items():
        values[condition] |= found


def _read(
    run: Run, model: Any, tokenizer: Any, texts: list[Text], ops: Conditions, max_tokens: int
) -> tuple[Values, dict[str, dict[str, Estimate]]]:
    """The figures of plain text, and the estimates that are no means."""
    read = reading(run, model, tokenizer, texts, list(ops.values()), max_tokens)
    known = read.tokens > 0
    if not known.any():
        raise DataError("Every text has a single token, so nothing is predicted; pass longer texts.")
    plain = read.cross_entropy[list(ops).index(UNSTEERED)]
    values: Values = {}
    also: dict[str, dict[str, Estimate]] = {}
    options = {"level": run.level, "seed": run.seed}
    for c, condition in enumerate(ops):
        entropy = read.cross_entropy[c]
        values[condition] = {"cross_entropy": entropy}
        also[condition] = {"perplexity": exponential(estimate(entropy[known], **options))}
        if condition != UNSTEERED:
            values[condition]["kl"] = read.kl[c]
            also[condition]["perplexity_ratio"] = exponential(estimate((entropy - plain)[known], **options))
    return values, also


def _generate(
    run: Run,
    model: Any,
    tokenizer: Any,
    prompts: list[Text],
    ops: Conditions,
    max_new_tokens: int,
    generation: Mapping[str, Any] | None,
) -> tuple[Values, list[list[str]]]:
    """The fluency of what is generated, and the texts."""
    texts = run.texts(model, tokenizer, prompts, list(ops.values()), max_new_tokens, generation)
    found = measure(as_metrics(list(FLUENCY)), [text for row in texts for text in row], Setting())
    rows = {name: numbers.reshape(len(ops), -1) for name, numbers in found.items()}
    return {condition: {name: rows[name][c] for name in rows} for c, condition in enumerate(ops)}, texts
