"""`sweep`: many strengths, vectors and sites on the same prompts, at little more than the price of one."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from steerfn.evaluate._configs import configs_of
from steerfn.evaluate._sweep_table import Sweep
from steerfn.metrics import Metric, Metrics, Setting, as_metrics, measure, try_metrics
from steerfn.model import Model, Tokenizer, layout, run_provenance, unwrap_model
from steerfn.operators import Make, Operator, Scope, add
from steerfn.output import progress_bar
from steerfn.run import (
    Chat,
    Partial,
    Scorer,
    Text,
    as_texts,
    by_prompt,
    decoding_of,
    encode,
    generate_many,
    is_text,
    items_of,
    limit_of,
)
from steerfn.values import DataError, ModelIdentity, Sites, SteeringVector, as_integer, integer, public
from steerfn.verbs import prepare_operators, warn_of_empty


@public
def sweep(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Text | Iterable[Text],
    vector: SteeringVector | Sequence[SteeringVector] | Mapping[str, SteeringVector],
    alphas: Iterable[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    *,
    sites: Sites | None = None,
    scope: Scope | None = None,
    make: Make = add,
    continuations: Sequence[str] | Sequence[Sequence[str]] | None = None,
    correct: int | Iterable[int] = 0,
    metrics: Metrics = (),
    max_new_tokens: int | None = None,
    seed: int = 0,
    chat: Chat = None,
    batch_size: int | str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **hf: Any,
) -> Sweep:
    """Run every vector at every site with every strength on the same prompts, and tabulate what comes of it.

    Without `continuations` texts are generated and measured by `metrics`: all configurations of all prompts are rows
    of common batches. With `continuations` nothing is generated: their log-probabilities are computed, with what
    configurations share computed once (the prompt where the scope begins after it, the blocks below the first
    steered one elsewhere). Both give what a loop over the configurations gives: the same greedy tokens, and
    log-probabilities within rounding.

    Decoding is greedy unless `do_sample=True` asks for sampling, whatever the model's own generation config says; then
    all configurations of a prompt are sampled with the same random numbers. `about["decoding"]` records which.

    Log-odds say what the model prefers where both continuations are put into its mouth, not what it writes: the
    strength that is best by them can be one at which generated texts fall apart, or one that changes none. Choose by
    them, then look at texts at that strength.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        prompts: texts, conversations or token ids, one or several, as in `generate`.
        vector: a vector, a list of vectors, or a mapping of names to vectors.
        alphas: strengths. 0 is the unsteered model, run once for all vectors and sites.
        sites: sites of which each is tried alone; an int means `resid_post`. None: each vector at all its sites.
        scope: the tokens to steer, as in `at`; default all. `sf.generated` begins at the prompt's last token.
        make: how a vector and a strength become an operator: `sf.add`, `sf.rotate`, `lambda v, a: ...`.
        continuations: a list of texts for every prompt, or one such list for each prompt.
        correct: the index of the continuation that counts, one for all prompts or one for each.
        metrics: names such as "sentiment" or "bleu" (see `sf.metrics`), functions that take a list of texts and give
            one number for each, or `Metric`s: one, a list, or a mapping of names to them. Those that want references
            compare with the unsteered model's texts, so they need alpha 0. What needs no model is tried on one text
            before anything runs. Default: the number of words.
        max_new_tokens: tokens to generate at most; default 40, as in `generate`.
        seed: for sampling (`do_sample=True`): prompt `p` is sampled with `seed + p` under every configuration, so
            that configurations differ by their steering alone.
        chat: as in `generate`.
        batch_size: rows at once; "auto" fits them to the device, and halves them where memory runs out.
        checkpoint: a file that keeps what has been found; the same call goes on from it, and deletes it at the end.
        progress: show a progress bar on stderr.
        hf: anything else that transformers' `generate` takes, and switches of the chat template, as in `generate`.

    Returns:
        A table: print it, `.best()`, `.mean()`, `.to_pandas()`, `.to_json()`. Of scores the metrics are `propensity`,
        `share`, `accuracy`, `log_prob` and `mass` (see `Sweep.values`).

    Raises:
        DataError: nothing to sweep over, empty prompts, counts that do not match, a metric that fails or lacks what
            it compares with, or keywords that `generate` refuses.
        SiteError: a site that the model or a vector lacks.
        FileError: a checkpoint of another sweep.

    Source: propensity as in Tan et al. 2024, "Analyzing the Generalization and Reliability of Steering Vectors";
    share as p(match) in Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition".

    Example:
        >>> import steerfn as sf
        >>> table = sf.sweep(
        ...     model, tokenizer, "The film was", v, [-4, 0, 4], continuations=[" good", " bad"], chat=False
        ... )
        >>> table.best().config.alpha
        4.0
        >>> frame = table.to_pandas()
    """
    seed, limit = integer("seed", seed), limit_of(batch_size)
    decoding = decoding_of(
        sweep, model, tokenizer, hf, chat=chat, max_new_tokens=max_new_tokens, seed=seed, batch_size=limit
    )
    chat = decoding.chat
    texts = as_texts(prompts, "prompts")
    root = unwrap_model(model)
    model_layout = layout(root)
    pairs = configs_of(model_layout, vector, alphas, sites, scope, make)
    configs, ops = [config for config, _ in pairs], {id(op): op for _, op in pairs}  # the unsteered model once
    distinct, which = list(ops.values()), [[*ops].index(id(op)) for _, op in pairs]
    identity = ModelIdentity(root)
    distinct = prepare_operators(distinct, identity, model_layout)  # what does not fit is known before anything runs
    options = {"prompts": texts, "continuations": continuations, "scope": scope, "seed": seed, "chat": chat}
    options |= {"configs": [[config.vector, list(config.sites), config.alpha] for config in configs]}
    if continuations is None:
        options |= decoding.provenance
    about = run_provenance(identity, distinct, options)
    choices = [] if continuations is None else by_prompt(continuations, len(texts))
    fits = (
        is_text
        if continuations is None
        else _has_shape({str(p): (len(distinct), len(c)) for p, c in enumerate(choices)})
    )
    with Partial(checkpoint, about, fits) as partial:
        if continuations is None:
            named = sweep_metrics(metrics, None in distinct)
            todo = [
                (c, p) for c in range(len(distinct)) for p in range(len(texts)) if f"{c} {p}" not in partial.results
            ]
            steps = generate_many(model, tokenizer, encode(tokenizer, texts, chat), distinct, todo, decoding)
            for part in _show_progress(
                steps, len(distinct) * len(texts), len(todo), len, "Generating", "text", progress
            ):
                partial.add({f"{c} {p}": text for (c, p), text in part.items()})
            rows = tuple(tuple(partial.results[f"{c} {p}"] for p in range(len(texts))) for c in which)
            steered = [distinct[c] for c in which]
            values = measure_grid(named, rows, texts, steered, model=model, tokenizer=tokenizer, chat=chat)
            return Sweep(tuple(configs), tuple(texts), values, texts=rows, about=about)
        _refuse_generation(metrics, decoding.hf)
        targets = correct_of(correct, [len(each) for each in choices])
        scorer = Scorer(model, items_of(tokenizer, texts, continuations, chat), distinct, batch_size=batch_size)
        done = {int(p) for p in partial.results}
        steps = scorer.run(done)
        for part in _show_progress(
            steps, len(texts), len(texts) - len(done), lambda f: len(f.items), "Scoring", "prompt", progress
        ):
            partial.add({str(p): rows.tolist() for p, rows in zip(part.items, part.log_probs, strict=True)})
        warn_of_empty(scorer.selections)
        log_probs = tuple(np.array(partial.results[str(p)])[which] for p in range(len(texts)))
        return Sweep(
            tuple(configs), tuple(texts), choice_metrics(log_probs, targets), continuations=tuple(map(tuple, choices)),
            log_probs=log_probs, about=about | {"correct": targets},
        )  # fmt: skip


def _has_shape(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str, Any], bool]:
    """Whether a value is a table of numbers of the shape that its key has."""

    def fits(key: str, value: Any) -> bool:
        try:
            table = np.array(value)
        except ValueError:  # rows of several lengths
            return False
        return table.shape == shapes.get(key) and table.dtype.kind == "f"

    return fits


def _show_progress(steps: Any, total: int, left: int, size: Any, what: str, unit: str, progress: bool) -> Any:
    with progress_bar(what, unit, progress, total=total, initial=total - left) as bar:
        for part in steps:
            yield part
            bar.update(size(part))


def _refuse_generation(metrics: Any, hf: dict[str, Any]) -> None:
    """Options of generation do nothing where continuations are scored."""
    if hf:
        raise DataError(f"sweep has no option {', '.join(map(repr, hf))} where continuations are scored.")
    if as_metrics(metrics):
        raise DataError("Metrics measure generated texts; leave out either metrics or continuations.")


DEFAULT = "length"
"""The metric of a sweep that names none."""
SCORED = ("propensity", "share", "accuracy", "log_prob", "mass")
"""The metrics of a sweep that scores several continuations."""


def sweep_metrics(metrics: Any, unsteered: bool) -> dict[str, Metric]:
    """The metrics of a sweep by name, each tried on one text where it needs no model: it fails before anything has run.

    Args:
        metrics: names, functions and `Metric`s, as `as_metrics` takes them; none at all is the length.
        unsteered: whether the unsteered model is in the sweep, whose texts are the references.

    Raises:
        DataError: a metric that is not known, that fails, or that needs references where there are none.
        SteerError: an optional package that is not installed.
    """
    named = as_metrics(metrics) or as_metrics(DEFAULT)
    if not unsteered and (lost := [name for name, each in named.items() if "references" in each.needs]):
        raise DataError(
            f"The metric {lost[0]!r} compares with the unsteered model's texts, which are not in this sweep: add 0 to "
            "alphas (with make=sf.add), or leave the metric out."
        )
    try_metrics(named)
    return named


def measure_grid(
    metrics: Mapping[str, Metric],
    texts: Sequence[Sequence[str]],
    prompts: Sequence[Text],
    ops: Sequence[Operator | None],
    *,
    model: Any,
    tokenizer: Any,
    chat: Chat,
) -> dict[str, np.ndarray]:
    """Every metric of every text, `[configs, prompts]`, each asked once for all texts.

    Texts are compared with those of the first configuration without an operator.

    Raises:
        DataError: a metric that does not give one number for each text.
    """
    setting = Setting(
        prompts=[*prompts] * len(texts),
        references=[*texts[ops.index(None)]] * len(texts) if None in ops else None,
        ops=[op for op in ops for _ in prompts],
        model=model,
        tokenizer=tokenizer,
        chat=chat,
    )
    values = measure(metrics, [text for row in texts for text in row], setting)
    return {name: numbers.reshape(len(texts), -1) for name, numbers in values.items()}


def correct_of(correct: Any, counts: Sequence[int]) -> list[int]:
    """Which continuation of each prompt is the target.

    Raises:
        DataError: an index outside the continuations, or another number of them than prompts.
    """
    targets = [correct] * len(counts) if as_integer(correct) is not None else list(correct)
    if len(targets) != len(counts):
        raise DataError(
            f"There are {len(counts)} prompts but {len(targets)} indices in `correct`; pass one for each, or "
            "one for all."
        )
    for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
        hint = f"it is the index of one of the {count} continuations"
        targets[i] = integer(f"correct[{i}]", target, 0, count - 1, hint=hint)
    return targets


def choice_metrics(log_probs: Sequence[np.ndarray], correct: Sequence[int]) -> dict[str, np.ndarray]:
    """The metrics in `Sweep.values`, each `[configs, prompts]`, of log-probabilities `[configs, continuations]`."""
    at_target = np.stack([rows[:, t] for rows, t in zip(log_probs, correct, strict=True)], axis=1)
    if any(rows.shape[1] == 1 for rows in log_probs):
        return {"log_prob": at_target}
    rest = [np.delete(rows, t, axis=1) for rows, t in zip(log_probs, correct, strict=True)]
    others = np.stack([_logsumexp(rows) for rows in rest], axis=1)
    total = np.logaddexp(at_target, others)
    best = np.stack([rows.max(1) for rows in rest], axis=1)
    share, accuracy = np.exp(at_target - total), (at_target > best).astype(np.float64)
    return dict(zip(SCORED, (at_target - others, share, accuracy, at_target, np.exp(total)), strict=True))


def _logsumexp(rows: np.ndarray) -> np.ndarray:
    top = rows.max(1, keepdims=True)
    return (top + np.log(np.exp(rows - top).sum(1, keepdims=True)))[:, 0]
