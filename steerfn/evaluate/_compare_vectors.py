"""`compare_vectors`: several vectors on the same prompts, with the controls that a claim needs."""

import os
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from steerfn.evaluate._conditions import (
    CONTROLS,
    conditions_of,
    named_vectors,
    numbers_of,
    random_slots,
    references_of,
    strengths_of,
    texts_of,
    validate_metrics,
)
from steerfn.evaluate._pairs import analyse, mean_of, plan_pairs, random_like
from steerfn.evaluate._statistics import RESAMPLES, by_unit, check_intervals, units_of
from steerfn.evaluate._vector_comparison import VectorComparison
from steerfn.metrics import Metrics, describe_metric
from steerfn.model import Model, Tokenizer, layout, run_provenance, unwrap_model, vector_identity
from steerfn.operators import Make, Scope, add
from steerfn.run import Chat, Partial, Text, as_texts, checked_seeds, decoding_of, limit_of
from steerfn.values import ModelIdentity, SteeringVector, public


@public
def compare_vectors(
    model: Model,
    tokenizer: Tokenizer,
    vectors: SteeringVector | Mapping[str, SteeringVector],
    prompts: Text | Iterable[Text],
    metrics: Metrics,
    *,
    alpha: float | Mapping[str, float] = 1.0,
    scope: Scope | None = None,
    make: Make = add,
    controls: int = CONTROLS,
    references: str | Iterable[str] | None = None,
    groups: Iterable[Hashable] | None = None,
    seeds: int | Iterable[int] = (0,),
    max_new_tokens: int | None = None,
    chat: Chat = None,
    batch_size: int | str = "auto",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **hf: Any,
) -> VectorComparison:
    """Compare vectors with each other, with the unsteered model, and with random vectors of the same length.

    Every condition generates from the same prompts, as rows of common batches: greedily, or with `do_sample=True` with
    the same random numbers (`about["decoding"]` says which). Each metric gives a number for every text; the numbers of
    a prompt (its seeds, its draws of a random vector) are averaged, since prompts are the independent units. For every
    metric each vector is compared with the unsteered model, with its random vectors, and with every other vector: the
    mean paired difference with its interval (`paired`), a sign-flip test, the effect size `d_z`, and a corrected
    p-value. Differences are in percent of the control's mean where the metric is nowhere negative and that mean is more
    than three standard errors above 0, else in the metric's unit.

    Against random vectors `p` is the larger of two: of the sign flips over prompts, and of the vector's mean as one
    more of the random vectors' means (`against_random`, from which the interval is, too). With prompts enough any
    direction differs from the mean of a few others; a vector must differ by more than they do among themselves. Each
    random vector is run on a part of the prompts: many of them on few prompts say more of how far they scatter than
    few of them on all.

    An effect is claimed where a vector differs from the unsteered model *and* from random vectors. The p-value of that
    claim is the larger of the two, and Holm's correction runs over metrics x vectors. Differences from the unsteered
    model alone, and those between vectors, are corrected among themselves.

    A difference counts as shown only if the corrected p-value is below `1 - level`, the interval excludes 0, four of
    five prompts have a number under both, and there are prompts, sign flips and random vectors enough that the test
    could have come out so at all.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vectors: the vectors by name; a single one is named "v".
        prompts: texts, conversations or token ids, one or several, as in `generate`. The same prompt twice is one unit.
        metrics: names, functions or `Metric`s; those that compare with references compare with the unsteered text of
            the same prompt and seed (and have no unsteered value then), unless `references` are given.
        alpha: the strength of all, or one for each name.
        scope: the tokens to steer, as in `at`; default all.
        make: how a vector and its strength become an operator: `sf.add`, `sf.rotate`, `lambda v, a: ...`.
        controls: random vectors for each vector: same sites, norms, strength, scope and operator. Up to ten are run on
            all prompts; more are divided over the prompts, each of which is continued under ten, so that forty cost as
            much as ten (with fewer than eight prompts they are fewer). Fewer than five are run and told, but carry no
            claim, since they do not say what others do.
        references: for each prompt the text that metrics such as bleu compare with.
        groups: a label for each prompt, where several belong together (the questions of one topic): their mean is one
            unit, so that signs are flipped, and units resampled, by group.
        seeds: of generation; several need sampling (`do_sample=True`): each gives every prompt one text. Prompt `p` is
            sampled with `seed * 1000003 + p`.
        max_new_tokens: tokens of a text at most; default 40, as in `generate`.
        chat: as in `generate`.
        batch_size: rows at once; "auto" fits them to memory.
        level: of the intervals; `1 - level` is the rate of false claims allowed over all effects.
        resamples: of every interval and test.
        seed: of the random vectors, resamples and sign flips.
        checkpoint: a file that keeps the texts while this runs; the same call goes on from it.
        progress: show a bar.
        hf: anything else that transformers' `generate` takes, and switches of the chat template, as in `generate`.

    Returns:
        A `VectorComparison`: `.summary()`, `.pairs`, `.means`, `.to_json()`, `.to_markdown()`, `.to_html()`, ...

    Raises:
        DataError: no vectors, prompts or metrics, names that are taken, counts that do not match, several seeds
            without sampling, a metric that fails.
        SiteError: a site that the model lacks.
        FileError: a checkpoint of something else.
        SteerError: scipy is not installed.

    Source: random controls as in Turner et al. 2023 and Arditi et al. 2024; the statistics are those of `estimate`,
    `paired`, `against_random` and `holm`.

    Example:
        >>> import steerfn as sf
        >>> vectors = {"happy": v, "sad": -v}
        >>> comparison = sf.compare_vectors(
        ...     model, tokenizer, vectors, prompts, "length", alpha=2.0, chat=False, max_new_tokens=3
        ... )
        >>> print(comparison.summary())  # two prompts show nothing; 40 and more are usual
        n = 2 prompts cannot carry a difference in length between happy and the unsteered model ...
    """
    drawn, limit = checked_seeds(seeds, hf), limit_of(batch_size)
    decoding = decoding_of(
        compare_vectors, model, tokenizer, hf, chat=chat, max_new_tokens=max_new_tokens, batch_size=limit
    )
    asked, named = as_texts(prompts, "prompts"), named_vectors(vectors)
    strengths, measures = strengths_of(alpha, named), validate_metrics(metrics)
    check_intervals(level, seed, resamples)
    given = references_of(references, len(asked))
    root = unwrap_model(model)
    model_layout = layout(root)
    units = units_of(asked, groups)
    slots, block = random_slots(controls, units, seed)
    identity = ModelIdentity(root)
    arms = conditions_of(model_layout, named, strengths, make=make, scope=scope, slots=slots, seed=seed)
    # What does not fit the model is known before anything runs.
    conditions = [arm.prepare(identity, model_layout) for arm in arms]
    ops = [op for condition in conditions for op in condition.ops]
    options = {
        "vectors": {name: vector_identity(vector) for name, vector in named.items()},
        "alpha": strengths,
        "operator": _call_name(make),
        "scope": scope,
        "controls": int(slots.max()) + 1,
        "groups": None if groups is None else units,
        "seed": seed,
        "prompts": asked,
        "seeds": drawn,
        **decoding.provenance,
    }
    about = run_provenance(identity, ops, options)
    with Partial(checkpoint, about) as partial:
        texts = texts_of(model, tokenizer, asked, conditions, drawn, partial, decoding, progress)
        values = numbers_of(
            measures, texts, conditions, asked, given, model=model, tokenizer=tokenizer, chat=decoding.chat
        )
    entries = units * len(drawn)
    numbers = {metric: {name: by_unit(each, entries) for name, each in of.items()} for metric, of in values.items()}
    how = {"level": level, "seed": seed, "resamples": resamples}
    return VectorComparison(
        prompts=tuple(asked),
        seeds=drawn,
        vectors=tuple(named),
        texts=texts,
        values=values,
        means={metric: {name: mean_of(each, how) for name, each in of.items()} for metric, of in numbers.items()},
        pairs=analyse(numbers, plan_pairs(list(named)), blocks={random_like(name): block for name in named}, **how),
        metrics=measures,
        unit_of=tuple(units),
        slots=slots,
        about=about
        | how
        | {"references": given, "metrics": {name: describe_metric(each) for name, each in measures.items()}},
    )


def _call_name(make: Any) -> str:
    # Not its repr, which may hold an address: the same call would be another run in every process.
    return f"{getattr(make, '__module__', '')}.{getattr(make, '__qualname__', type(make).__name__)}"
