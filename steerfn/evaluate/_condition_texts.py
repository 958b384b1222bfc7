"""The texts of every condition, and what metrics make of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerfn._errors import DataError
from steerfn._text import Text, as_list
from steerfn.evaluate._conditions import Condition
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._seeds import seed_of_rows
from steerfn.metrics._metric import Metric, Setting, as_metrics, measure
from steerfn.sweeping._generated import generated
from steerfn.sweeping._partial import Partial

Texts = Mapping[str, tuple[str, ...]]
"""By condition, `[draws * seeds * prompts]`, prompts fastest."""


def texts_of(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    partial: Partial,
    *,
    limit: int | None,
    max_new_tokens: int,
    chat: bool | None,
    progress: bool,
    hf: dict[str, Any],
) -> Texts:
    """Generate every condition's texts: under one seed all of them are rows of common batches.

    What `partial` has is not generated again; see `generated` for the rest.
    """
    from tqdm import tqdm

    ops = [op for condition in conditions for op in condition.ops]
    total = len(seeds) * len(ops) * len(prompts)
    with tqdm(
        total=total, initial=len(partial.found), desc="Generating", unit="text", disable=not progress, leave=False
    ) as bar:
        for s, seed in enumerate(seeds):
            todo = [(c, p) for c in range(len(ops)) for p in range(len(prompts)) if f"{s} {c} {p}" not in partial.found]
            for batch in generated(
                model, tokenizer, prompts, ops, todo, limit=limit, max_new_tokens=max_new_tokens,
                seed=seed_of_rows(seed, model, hf), chat=chat, hf=hf,
            ):  # fmt: skip
                partial.add({f"{s} {c} {p}": text for (c, p), text in batch.items()})
                bar.update(len(batch))
    found, start = {}, 0
    for condition in conditions:
        keys = [
            f"{s} {start + draw} {p}"
            for draw in range(len(condition.ops))
            for s in range(len(seeds))
            for p in range(len(prompts))
        ]
        found[condition.name] = tuple(partial.found[key] for key in keys)
        start += len(condition.ops)
    return found


def tried(metrics: Any) -> dict[str, Metric]:
    """Metrics by name; those that want nothing but texts are tried on one, so that they fail before hours have passed.

    Raises:
        DataError: none, or one that fails.
    """
    found = as_metrics(metrics)
    if not found:
        raise DataError("metrics names no metric; pass at least one, such as metrics=['toxicity'].")
    measure(
        {name: each for name, each in found.items() if not each.needs}, ["A text to try the metrics on."], Setting()
    )
    return found


def references_of(references: Any, prompts: int) -> list[str] | None:
    """The user's references, one for each prompt.

    Raises:
        DataError: another number of them than prompts, or something that is no text.
    """
    if references is None:
        return None
    found = [references] if isinstance(references, str) else as_list(references, "references")
    if len(found) != prompts:
        raise DataError(f"There are {prompts} prompts but {len(found)} references; pass one for each.")
    if wrong := [each for each in found if not isinstance(each, str)]:
        raise DataError(f"references are texts, one for each prompt, not {wrong[0]!r:.80}.")
    return found


def numbers_of(
    metrics: Mapping[str, Metric],
    texts: Texts,
    conditions: Sequence[Condition],
    prompts: Sequence[Text],
    references: Sequence[str] | None,
    *,
    model: Any,
    tokenizer: Any,
    chat: bool | None,
) -> dict[str, dict[str, np.ndarray]]:
    """By metric and condition, a number for each text; each metric is asked once for all of them.

    Without `references`, texts are compared with the unsteered ones of the same prompt and seed, and the unsteered
    condition has no number in metrics that compare: its texts would be compared with themselves.
    """
    flat = [text for condition in conditions for text in texts[condition.name]]
    once = len(texts[UNSTEERED])
    ops = [op for condition in conditions for op in condition.ops for _ in range(once)]
    setting = Setting(
        prompts=list(prompts) * (len(flat) // len(prompts)),
        references=[*texts[UNSTEERED]] * (len(flat) // once)
        if references is None
        else [*references] * (len(flat) // len(prompts)),
        ops=ops,
        model=model,
        tokenizer=tokenizer,
        chat=chat,
    )
    found: dict[str, dict[str, np.ndarray]] = {}
    ends = np.cumsum([len(texts[condition.name]) for condition in conditions])[:-1]
    for name, numbers in measure(metrics, flat, setting).items():
        parts = zip(conditions, np.split(numbers, ends), strict=True)
        found[name] = {condition.name: part for condition, part in parts}
        if references is None and "references" in metrics[name].needs:
            del found[name][UNSTEERED]
    return found
