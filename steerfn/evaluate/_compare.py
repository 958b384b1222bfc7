"""`compare`: the same prompts with and without steering, side by side."""

from typing import Any

import numpy as np
from torch import Tensor

from steerfn._about import about_of
from steerfn._blocks import unwrapped
from steerfn._chat_template import Chat
from steerfn._decoding import decoding_of
from steerfn._errors import DataError
from steerfn._extra import import_extra
from steerfn._keywords import hf_keywords
from steerfn._layout import layout
from steerfn._steer import as_steering, prepared
from steerfn._text import as_texts
from steerfn._vector import SteeringVector
from steerfn.evaluate._comparison import STEERING, Comparison
from steerfn.evaluate._condition_texts import numbers_of, references_of, texts_of, tried
from steerfn.evaluate._conditions import Condition
from steerfn.evaluate._named import identified, told
from steerfn.evaluate._pairs import UNSTEERED, analyse, mean_of
from steerfn.evaluate._seeds import checked_seeds
from steerfn.evaluate._statistics import Estimate, by_prompt, checked_options, units_of
from steerfn.operators import Scope
from steerfn.reading._budget import limit_of
from steerfn.sweeping._partial import Partial

METRICS = ("length", "distinct_n", "repetition")
"""What a comparison measures unless told otherwise: how much is said, and whether it has begun to loop."""
LONGEST = 200
"""Characters of an operator in a heading."""


def compare(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    op: Any,
    metrics: Any = METRICS,
    *,
    alpha: Any = None,
    scope: Scope | None = None,
    seeds: Any = (0,),
    references: Any = None,
    groups: Any = None,
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
        >>> found = sf.compare(model, tokenizer, prompts, v, ["sentiment", "bleu"], alpha=2.0)  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP
        >>> found.to_html("comparison.html")  # doctest: +SKIP
    """
    chat, hf = hf_keywords(compare, model, tokenizer, chat, hf)
    asked, steering, measures = as_texts(prompts, "prompts"), as_steering(op, alpha, scope), tried(metrics)
    if isinstance(alpha, Tensor) and alpha.ndim:
        raise DataError(
            f"alpha is one number, not a tensor of shape {list(alpha.shape)}: all prompts are steered alike."
        )
    checked_options(level)
    unit_of = units_of(asked, groups)
    import_extra("scipy", "evaluate")  # it is wanted last, and missed better before hours have passed
    given, drawn = references_of(references, len(asked)), checked_seeds(seeds, hf)
    decoding = decoding_of(model, tokenizer, hf, max_new_tokens)
    limit, root = limit_of(batch_size, "rows"), unwrapped(model)
    prepared(steering, root, layout(root), strict=False)  # what does not fit the model is known before anything runs
    conditions = [Condition(UNSTEERED, (None,)), Condition(STEERING, (steering,))]
    options = {
        "steering": _described(op, alpha, scope),
        "operator": str(steering),
        "vectors": [identified(vector) for vector in steering.vectors],
        "prompts": asked,
        "seeds": drawn,
        "max_new_tokens": decoding.max_new_tokens,
        "chat": chat,
        "hf": hf,
        "decoding": decoding.name,
        "references": given,
        "groups": None if groups is None else unit_of,
        "level": level,
        "metrics": {name: told(each) for name, each in measures.items()},
    }
    texts = texts_of(
        model, tokenizer, asked, conditions, drawn, Partial(None, {}), limit=limit, max_new_tokens=max_new_tokens,
        chat=chat, progress=progress, hf=hf,
    )  # fmt: skip
    values = numbers_of(measures, texts, conditions, asked, given, model=model, tokenizer=tokenizer, chat=chat)
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
        about=about_of(root, [steering], options),
    )


def _means(values: dict[str, np.ndarray], how: dict[str, Any]) -> dict[str, Estimate]:
    """The means before and after, over the prompts that have a number both times: others would be survivors."""
    both = np.isfinite(np.stack(list(values.values()))).all(0)
    return {name: mean_of(np.where(both, each, np.nan), how) for name, each in values.items()}


def _described(op: Any, alpha: Any, scope: Scope | None) -> str:
    """What was done, for a heading."""
    where = "" if scope is None else f", at {scope}"
    if isinstance(op, SteeringVector):
        return f"{op!r}, alpha {1 if alpha is None else float(alpha):g}{where}"
    text = str(op)
    return f"{text if len(text) <= LONGEST else f'{text[:LONGEST]}...'}{where}"
