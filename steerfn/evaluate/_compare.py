"""`compare`: the same prompts with and without steering, side by side."""

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from torch import Tensor

from steerfn.evaluate._comparison import STEERING, Comparison
from steerfn.evaluate._conditions import Arm, numbers_of, references_of, texts_of, validate_metrics
from steerfn.evaluate._pairs import UNSTEERED, analyse, mean_of
from steerfn.evaluate._statistics import Estimate, by_prompt, check_intervals, units_of
from steerfn.metrics import Metrics, describe_metric
from steerfn.model import Model, Tokenizer, layout, run_provenance, unwrap_model, vector_identity
from steerfn.operators import Number, Operator, Scope
from steerfn.run import Chat, Partial, Text, as_texts, checked_seeds, decoding_of, limit_of
from steerfn.values import DataError, ModelIdentity, SteeringVector, public
from steerfn.verbs import as_steering, prepare_operator

METRICS = ("length", "distinct_n", "repetition")
"""What a comparison measures unless told otherwise: how much is said, and whether it has begun to loop."""
LONGEST = 200
"""Characters of an operator in a heading."""


@public
def compare(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Text | Iterable[Text],
    op: Operator | SteeringVector,
    metrics: Metrics = METRICS,
    *,
    alpha: Number | None = None,
    scope: Scope | None = None,
    seeds: int | Iterable[int] = (0,),
    references: str | Iterable[str] | None = None,
    groups: Iterable[Hashable] | None = None,
    max_new_tokens: int | None = None,
    chat: Chat = None,
    batch_size: int | str = "auto",
    level: float = 0.95,
    progress: bool = True,
    **hf: Any,
) -> Comparison:
    """Generate from the same prompts with and without steering, and put the texts and their numbers side by side.

    Both texts of a prompt are rows of common batches. They are greedy unless `do_sample=True` asks for sampling, and
    then sampled with the same random numbers, so they differ by the steering alone; `about["decoding"]` says which.
    Each metric gives a number for every text. With `b_p` and `a_p` the numbers of prompt `p` before and after,
    averaged over its seeds, what steering did is the mean of `a_p - b_p` over the prompts that have both, with its
    interval and a sign-flip test (`paired`), corrected by Holm's method over the metrics. Metrics that compare with
    references (`bleu`, `semantic_similarity`, ...) compare the text after with the text before, unless `references`
    are given.

    Whether a random push would have done the same is not asked here: that is `compare_vectors`.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        prompts: texts, conversations or token ids, as in `generate`. The same prompt twice counts as one.
        op: a vector or an operator.
        metrics: names, functions or `Metric`s: one, a list, or a mapping of names to them.
        alpha: the strength of a vector, in units of the vector (default 1); an operator has its own.
        scope: the tokens to steer, as in `at`; default all.
        seeds: of sampling; several need `do_sample=True`: each gives every prompt one text before and one after.
            Prompt `p` is sampled with `seed * 1000003 + p`.
        references: for each prompt the text that metrics such as bleu compare with, before and after.
        groups: a label for each prompt, where several belong together: their mean is one unit, so that signs are
            flipped, and units resampled, by group.
        max_new_tokens: tokens of a text at most; default 40, as in `generate`.
        chat: as in `generate`.
        batch_size: rows at once; "auto" fits them to memory.
        level: of the intervals; `1 - level` is the rate of false claims allowed over all metrics.
        progress: show a bar.
        hf: anything else that transformers' `generate` takes, and switches of the chat template, as in `generate`.

    Returns:
        A `Comparison`: print it, or `.show()`, `.summary()`, `.to_html()`, `.to_json()`, `.to_markdown()`, ...

    Raises:
        DataError: no prompts or metrics, counts that do not match, several seeds without sampling, a metric that
            fails or is not known, a strength for each row.
        SiteError: a site that the model lacks.
        SteerError: neither vector nor operator, a strength beside an operator, scipy is not installed.

    Source: the pairing by prompt and the tests are those of `paired` and `holm`.

    Example:
        >>> import steerfn as sf
        >>> comparison = sf.compare(model, tokenizer, prompts, v, ["length", "bleu"], chat=False, max_new_tokens=6)
        >>> print(comparison)
        2 prompts, with and without SteeringVector(resid_post[14] |v|=..., mean_difference), alpha 1
        ...
        >>> comparison.save("comparison.html").name
        'comparison.html'
    """
    drawn = checked_seeds(seeds, hf)
    decoding = decoding_of(
        compare, model, tokenizer, hf, chat=chat, max_new_tokens=max_new_tokens, batch_size=limit_of(batch_size)
    )
    asked, steering, measures = as_texts(prompts, "prompts"), as_steering(op, alpha, scope), validate_metrics(metrics)
    if isinstance(alpha, Tensor) and alpha.ndim:
        raise DataError(
            f"alpha must be one number, not a tensor of shape {list(alpha.shape)}: all prompts are steered alike."
        )
    check_intervals(level)
    unit_of = units_of(asked, groups)
    given, identity = references_of(references, len(asked)), ModelIdentity(unwrap_model(model))
    # What does not fit the model is known before anything runs.
    prepared = prepare_operator(steering, identity, layout(identity.model))
    conditions = [Arm(UNSTEERED, (None,)), Arm(STEERING, (prepared,))]
    options = {
        "steering": _describe_steering(op, alpha, scope),
        "operator": str(steering),
        "vectors": [vector_identity(vector) for vector in steering.vectors],
        "prompts": asked,
        "seeds": drawn,
        **decoding.provenance,
        "references": given,
        "groups": None if groups is None else unit_of,
        "level": level,
        "metrics": {name: describe_metric(each) for name, each in measures.items()},
    }
    texts = texts_of(model, tokenizer, asked, conditions, drawn, Partial(None, {}), decoding, progress)
    values = numbers_of(measures, texts, conditions, asked, given, model=model, tokenizer=tokenizer, chat=decoding.chat)
    # A prompt is one unit, however many seeds and copies of it there are.
    entries = unit_of * len(drawn)
    units = {metric: {name: by_prompt(each, entries) for name, each in of.items()} for metric, of in values.items()}
    how = {"level": level, "seed": 0}
    means = {metric: _means(of, how) for metric, of in units.items()}
    return Comparison(
        prompts=tuple(asked),
        seeds=drawn,
        before=texts[UNSTEERED],
        after=texts[STEERING],
        values={metric: (of.get(UNSTEERED), of[STEERING]) for metric, of in values.items()},
        means={metric: (of.get(UNSTEERED), of[STEERING]) for metric, of in means.items()},
        pairs=analyse(units, [(STEERING, UNSTEERED, "unsteered")], **how),
        metrics=measures,
        about=run_provenance(identity, [steering], options),
    )


def _means(values: dict[str, np.ndarray], how: dict[str, Any]) -> dict[str, Estimate]:
    """The means before and after, over the prompts that have a number both times: others would be survivors."""
    both = np.isfinite(np.stack(list(values.values()))).all(0)
    return {name: mean_of(np.where(both, each, np.nan), how) for name, each in values.items()}


def _describe_steering(op: Any, alpha: Any, scope: Scope | None) -> str:
    """A short description of the steering, for a heading."""
    where = "" if scope is None else f", at {scope}"
    if isinstance(op, SteeringVector):
        return f"{op!r}, alpha {1 if alpha is None else float(alpha):g}{where}"
    text = str(op)
    return f"{text if len(text) <= LONGEST else f'{text[:LONGEST]}...'}{where}"
