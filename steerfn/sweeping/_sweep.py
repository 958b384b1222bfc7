"""`sweep`: many strengths, vectors and sites on the same prompts, at little more than the price of one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn._about import about_of
from steerfn._blocks import unwrapped
from steerfn._chat_template import Chat
from steerfn._decoding import decoding_of
from steerfn._errors import DataError
from steerfn._keywords import hf_keywords
from steerfn._layout import layout
from steerfn._steer import prepared, warn_of_empty
from steerfn._text import as_texts
from steerfn.discover.engine._discover import checked_seed
from steerfn.metrics._metric import as_metrics
from steerfn.operators import Operator, Scope, add
from steerfn.reading._budget import limit_of
from steerfn.scoring import Scorer, items_of
from steerfn.scoring._item import by_prompt
from steerfn.sweeping._configs import Make, configs_of
from steerfn.sweeping._generated import generated
from steerfn.sweeping._measured import measured, scored, targets_of, tried
from steerfn.sweeping._partial import Partial
from steerfn.sweeping._table import Sweep


def sweep(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    v: Any,
    alphas: Any = (-2.0, -1.0, 0.0, 1.0, 2.0),
    *,
    sites: Any = None,
    scope: Scope | None = None,
    operator: Make = add,
    continuations: Any = None,
    targets: Any = 0,
    metrics: Any = (),
    max_new_tokens: int | None = None,
    seed: int = 0,
    chat: Chat = None,
    batch_size: int | str = "auto",
    checkpoint: Any = None,
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
        v: a vector, a list of vectors, or a mapping of names to vectors.
        alphas: strengths. 0 is the unsteered model, run once for all vectors and sites.
        sites: sites of which each is tried alone; an int means `resid_post`. None: each vector at all its sites.
        scope: the tokens to steer, as in `at`; default all. `sf.generated` begins at the prompt's last token.
        operator: how a vector and a strength become an operator: `sf.add`, `sf.rotate`, `lambda v, a: ...`.
        continuations: a list of texts for every prompt, or one such list for each prompt.
        targets: the index of the continuation that counts, one for all prompts or one for each.
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
        ...     model, tokenizer, "The film was", v, [-4, 0, 4], sites=[10, 14], continuations=[" good", " bad"]
        ... )  # doctest: +SKIP
        >>> print(table, table.best(), sep="\\n\\n")  # doctest: +SKIP
    """
    chat, hf = hf_keywords(sweep, model, tokenizer, chat, hf)
    decoding = decoding_of(model, tokenizer, hf, max_new_tokens)
    texts = as_texts(prompts, "prompts")
    root = unwrapped(model)
    found = layout(root)
    pairs = configs_of(found, v, alphas, sites, scope, operator)
    configs, distinct, which = [config for config, _ in pairs], *_distinct([op for _, op in pairs])
    for op in distinct:  # what does not fit the model is known before anything runs
        if op is not None:
            prepared(op, root, found, strict=False)
    limit = limit_of(batch_size, "rows")
    checked_seed(seed)
    options = {"prompts": texts, "continuations": continuations, "scope": scope, "seed": seed, "chat": chat}
    options |= {"configs": [[config.vector, list(config.sites), config.alpha] for config in configs]}
    if continuations is None:
        options |= {"decoding": decoding.name, "max_new_tokens": decoding.max_new_tokens, "hf": hf}
    about = about_of(root, distinct, options)
    with Partial(checkpoint, about) as partial:
        if continuations is None:
            named = tried(metrics, None in distinct)
            todo = [(c, p) for c in range(len(distinct)) for p in range(len(texts)) if f"{c} {p}" not in partial.found]
            steps = generated(
                model, tokenizer, texts, distinct, todo, limit=limit, max_new_tokens=max_new_tokens, seed=seed,
                chat=chat, hf=hf,
            )  # fmt: skip
            for part in _watched(steps, len(distinct) * len(texts), len(todo), len, "Generating", "text", progress):
                partial.add({f"{c} {p}": text for (c, p), text in part.items()})
            rows = tuple(tuple(partial.found[f"{c} {p}"] for p in range(len(texts))) for c in which)
            steered = [distinct[c] for c in which]
            values = measured(named, rows, texts, steered, model=model, tokenizer=tokenizer, chat=chat)
            return Sweep(tuple(configs), tuple(texts), values, texts=rows, about=about)
        _refuse_generation(metrics, hf)
        choices = by_prompt(continuations, len(texts))
        wanted = targets_of(targets, [len(each) for each in choices])
        scorer = Scorer(model, items_of(tokenizer, texts, continuations, chat), distinct, batch_size=batch_size)
        done = {int(p) for p in partial.found}
        steps = scorer.run(done)
        for part in _watched(
            steps, len(texts), len(texts) - len(done), lambda f: len(f.items), "Scoring", "prompt", progress
        ):
            partial.add({str(p): rows.tolist() for p, rows in zip(part.items, part.log_probs, strict=True)})
        warn_of_empty(scorer.selections)
        log_probs = tuple(np.array(partial.found[str(p)])[which] for p in range(len(texts)))
        return Sweep(
            tuple(configs), tuple(texts), scored(log_probs, wanted), continuations=tuple(map(tuple, choices)),
            log_probs=log_probs, about=about | {"targets": wanted},
        )  # fmt: skip


def _distinct(ops: Sequence[Operator | None]) -> tuple[list[Operator | None], list[int]]:
    """The operators with the unsteered model at most once, and which of them each was."""
    kept: list[Operator | None] = []
    which = []
    for op in ops:
        if op is None and None in kept:
            which.append(kept.index(None))
        else:
            which.append(len(kept))
            kept.append(op)
    return kept, which


def _watched(steps: Any, total: int, left: int, size: Any, what: str, unit: str, progress: bool) -> Any:
    from tqdm import tqdm

    with tqdm(total=total, initial=total - left, desc=what, unit=unit, disable=not progress, leave=False) as bar:
        for part in steps:
            yield part
            bar.update(size(part))


def _refuse_generation(metrics: Any, hf: dict[str, Any]) -> None:
    """Options of generation do nothing where continuations are scored."""
    if hf:
        raise TypeError(f"sweep has no option {', '.join(map(repr, hf))} where continuations are scored.")
    if as_metrics(metrics):
        raise DataError("Metrics measure generated texts; with continuations leave them out, or leave those out.")
