"""The numbers of a sweep: what metrics make of texts, and what is made of log-probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerfn._chat_template import Chat
from steerfn._errors import DataError
from steerfn._text import Text
from steerfn.metrics._metric import Metric, Setting, as_metrics, measure
from steerfn.operators import Operator

DEFAULT = "length"
"""The metric of a sweep that names none."""
ALONE = {"prompts", "references"}
"""What a metric may need beside the texts and still be tried before anything has run."""


def tried(metrics: Any, unsteered: bool) -> dict[str, Metric]:
    """The metrics of a sweep by name, each tried on one text where it needs no model: it fails before anything has run.

    Args:
        metrics: names, functions and `Metric`s, as `as_metrics` takes them; none at all is the length.
        unsteered: whether the unsteered model is in the sweep, whose texts are the references.

    Raises:
        DataError: a metric that is not known, that fails, or that needs references where there are none.
        SteerError: an optional package that is not installed.
    """
    found = as_metrics(metrics) or as_metrics(DEFAULT)
    if not unsteered and (lost := [name for name, each in found.items() if "references" in each.needs]):
        raise DataError(
            f"The metric {lost[0]!r} compares with the unsteered model's texts, which are not in this sweep: add 0 to "
            "alphas (with operator=sf.add), or leave the metric out."
        )
    text = "A text to try the metrics on."
    setting = Setting(prompts=[text], references=[text])
    measure({name: each for name, each in found.items() if set(each.needs) <= ALONE}, [text], setting)
    return found


def measured(
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

    Args:
        metrics: by name.
        texts: `[configs, prompts]`.
        prompts: the prompts.
        ops: the operator of each configuration, None for the unsteered model; the first such is what texts are
            compared with.
        model: the model.
        tokenizer: its tokenizer.
        chat: as in `generate`.

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
    found = measure(metrics, [text for row in texts for text in row], setting)
    return {name: numbers.reshape(len(texts), -1) for name, numbers in found.items()}


def targets_of(targets: Any, counts: Sequence[int]) -> list[int]:
    """Which continuation of each prompt is the target.

    Raises:
        DataError: an index outside the continuations, or another number of them than prompts.
    """
    found = [targets] * len(counts) if isinstance(targets, int) else list(targets)
    if len(found) != len(counts):
        raise DataError(f"There are {len(counts)} prompts but {len(found)} targets; pass one for each, or one for all.")
    for i, (target, count) in enumerate(zip(found, counts, strict=True)):
        if isinstance(target, bool) or not isinstance(target, (int, np.integer)) or not 0 <= target < count:
            raise DataError(f"targets[{i}] is {target!r}; it is the index of one of the {count} continuations, from 0.")
    return [int(target) for target in found]


def scored(log_probs: Sequence[np.ndarray], targets: Sequence[int]) -> dict[str, np.ndarray]:
    """The numbers of log-probabilities `[configs, continuations]` of each prompt, each `[configs, prompts]`.

    With `l` the log-probabilities and `t` the target:

    - `propensity`: `l_t - log sum_{c != t} exp l_c`, the log-odds of the target against the others;
    - `share`: `exp l_t / sum_c exp l_c`, which for answer letters is CAA's p(match);
    - `accuracy`: 1 where no other continuation is as likely, else 0;
    - `log_prob`: `l_t`;
    - `mass`: `sum_c exp l_c`, how much of the model's probability the shares speak for.

    Where a prompt has one continuation, `log_prob` is all there is.
    """
    at_target = np.stack([rows[:, t] for rows, t in zip(log_probs, targets, strict=True)], axis=1)
    if any(rows.shape[1] == 1 for rows in log_probs):
        return {"log_prob": at_target}
    rest = [np.delete(rows, t, axis=1) for rows, t in zip(log_probs, targets, strict=True)]
    others = np.stack([_logsumexp(rows) for rows in rest], axis=1)
    total = np.logaddexp(at_target, others)
    best = np.stack([rows.max(1) for rows in rest], axis=1)
    return {
        "propensity": at_target - others,
        "share": np.exp(at_target - total),
        "accuracy": (at_target > best).astype(np.float64),
        "log_prob": at_target,
        "mass": np.exp(total),
    }


def _logsumexp(rows: np.ndarray) -> np.ndarray:
    top = rows.max(1, keepdims=True)
    return (top + np.log(np.exp(rows - top).sum(1, keepdims=True)))[:, 0]
