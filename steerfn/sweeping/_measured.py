"""The numbers of a sweep: what metrics make of texts, and what is made of log-probabilities."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steerfn._errors import DataError

Metric = Callable[[Sequence[str]], Sequence[float]]
"""Texts in, one number for each out."""


def metrics_of(metrics: Any) -> dict[str, Metric]:
    """Metrics by name.

    Raises:
        DataError: something that is no function, or two of one name.
    """
    named: list[tuple[str, Any]]
    if isinstance(metrics, Mapping):
        named = [(str(name), each) for name, each in metrics.items()]
    else:
        if isinstance(metrics, str) or not (callable(metrics) or isinstance(metrics, Sequence)):
            raise DataError(
                "metrics is a list of functions, each of a list of texts that gives one number for each, not "
                f"{metrics!r:.80}."
            )
        listed = [metrics] if callable(metrics) else list(metrics)
        named = [(getattr(each, "__name__", type(each).__name__), each) for each in listed]
    for name, each in named:
        if not callable(each):
            raise DataError(
                f"A metric is a function of a list of texts that gives one number for each, not {each!r:.80}."
            )
        if [n for n, _ in named].count(name) > 1:
            raise DataError(f"Two metrics are named {name!r}; pass a mapping of names to functions.")
    return dict(named)


def measured(metrics: Mapping[str, Metric], texts: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Every metric of every text, `[configs, prompts]`, each asked once for all texts.

    Raises:
        DataError: a metric that does not give one number for each text.
    """
    flat = [text for row in texts for text in row]
    found = {}
    for name, metric in metrics.items():
        try:
            numbers = np.array(list(metric(flat)), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"The metric {name!r} must give one number for each text: {error}.") from error
        if numbers.shape != (len(flat),):
            raise DataError(
                f"The metric {name!r} gave {numbers.shape} numbers for {len(flat)} texts; it must give one each."
            )
        found[name] = numbers.reshape(len(texts), -1)
    return found


def words(texts: Sequence[str]) -> list[float]:
    """The metric of a sweep that names none: how many words a text has."""
    return [float(len(text.split())) for text in texts]


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
