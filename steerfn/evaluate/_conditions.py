"""The conditions of a comparison of vectors: no steering, each vector, and random vectors of the same length.

With the texts of every condition, and what metrics make of them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerfn.discover import random_vector
from steerfn.evaluate._configs import make_operator
from steerfn.evaluate._pairs import UNSTEERED, random_like
from steerfn.metrics import Metric, Setting, as_metrics, measure, try_metrics
from steerfn.model import Layout
from steerfn.operators import Make, Operator, Scope
from steerfn.output import progress_bar
from steerfn.run import Chat, Decoding, Partial, Text, as_list, encode, generate_many, seed_of_rows
from steerfn.values import DataError, ModelIdentity, SteeringVector, finite_number, positive_int
from steerfn.verbs import prepare_operators

CONTROLS = 40
"""Random vectors for each vector, unless told otherwise."""
PER_PROMPT = 10
"""Random vectors that a prompt is continued under at most. How far random vectors scatter is better known from forty of
them on a quarter of the prompts each than from ten on all, at the same cost (`benchmarks/power.py`)."""
FEWEST_PROMPTS = 2
"""Prompts of a random vector at least, or what it does could not be told from what the prompts do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """One way to generate.

    Attributes:
        name: "unsteered", a vector's name, or "random like" one.
        ops: its operator, or one for each draw of a random vector; None is the unsteered model.
        slots: which of the operators each prompt is continued under, `[slots, prompts]`; None is the first for all.
    """

    name: str
    ops: tuple[Operator | None, ...]
    slots: np.ndarray | None = None

    def runs(self, prompts: int) -> np.ndarray:
        """The index of the operator of every text, `[slots, prompts]`."""
        return np.zeros((1, prompts), int) if self.slots is None else self.slots

    def prepare(self, identity: ModelIdentity, model_layout: Layout) -> "Arm":
        """The same with its operators checked against a model, as by `prepare_operators`."""
        return dataclasses.replace(self, ops=tuple(prepare_operators(self.ops, identity, model_layout)))


def named_vectors(vectors: Any) -> dict[str, SteeringVector]:
    """The vectors by name; a single one is named "v".

    Raises:
        DataError: none, something else, or a name that a control has.
    """
    named = {"v": vectors} if isinstance(vectors, SteeringVector) else vectors
    wrong = [each for each in named.values() if not isinstance(each, SteeringVector)] if _is_named(named) else [named]
    if wrong:
        raise DataError(
            "vectors must be a SteeringVector, or a mapping of names to at least one, such as "
            f"{{'v1': v1, 'v2': v2}}, not {wrong[0]!r:.80}."
        )
    taken = {UNSTEERED, *map(random_like, named)} & set(named)
    if taken:
        raise DataError(f"A vector cannot be named {min(taken)!r}, which is the name of a control; choose another.")
    return dict(named)


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(name, str) and name for name in value)


def strengths_of(alpha: Any, names: Mapping[str, Any]) -> dict[str, float]:
    """The strength of each vector, of one for all or one for each name.

    Raises:
        DataError: something that is no finite number, or other names than the vectors'.
    """
    if isinstance(alpha, Mapping) and set(alpha) != set(names):
        raise DataError(
            f"alpha has strengths for {sorted(map(str, alpha))}, but the vectors are {sorted(names)}; give one "
            "for each."
        )
    strengths = alpha if isinstance(alpha, Mapping) else dict.fromkeys(names, alpha)
    hint = "a mapping of the vectors' names to numbers is taken too"
    return {name: float(finite_number("alpha", strengths[name], hint=hint)) for name in names}


def random_slots(controls: int, units: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which random vectors each prompt is continued under, and the block of each unit.

    Up to ten random vectors are run on all prompts. More of them are divided, ten at most to a block of units, so that
    every prompt is continued under the same number of them; that number is rounded up to fill the blocks, and blocks
    are fewer where they would have fewer than two units.

    Args:
        controls: how many random vectors are wanted.
        units: the unit of each prompt, from 0: equal prompts, or prompts of one group, are one unit.
        seed: of the division.

    Returns:
        The index of a random vector for each slot and prompt, `[slots, prompts]`; and the block of each unit.

    Raises:
        DataError: no number of random vectors.

    Example:
        >>> slots, block = random_slots(20, [0, 1, 2, 3], seed=0)
        >>> slots.shape, sorted(block.tolist())
        ((10, 4), [0, 0, 1, 1])
    """
    controls = positive_int("controls", controls)
    target, n = math.ceil(controls / PER_PROMPT), max(units) + 1
    blocks = max(1, min(target, n // FEWEST_PROMPTS))
    each = math.ceil(controls / target)
    block = np.empty(n, int)
    block[np.random.default_rng(seed).permutation(n)] = np.arange(n) % blocks
    return each * block[np.asarray(units)] + np.arange(each)[:, None], block


def conditions_of(
    model_layout: Layout,
    vectors: Mapping[str, SteeringVector],
    strengths: Mapping[str, float],
    *,
    make: Make,
    scope: Scope | None,
    slots: np.ndarray,
    seed: int,
) -> list[Arm]:
    """Every condition with its operators; `slots` are those of `random_slots`.

    Of `k` random vectors the `j`-th of the `i`-th vector is drawn with `seed + i * k + j`, so that two vectors of one
    length have different ones.

    Raises:
        SteerError: something that is not an operator.
    """
    controls = int(slots.max()) + 1
    steered, random = [], []
    for i, (name, vector) in enumerate(vectors.items()):
        whole, alpha = vector.resolve(model_layout.n_layers), strengths[name]
        draws = [random_vector(like=whole, seed=seed + i * controls + j) for j in range(controls)]
        steered.append(Arm(name, (make_operator(make, whole, alpha, scope),)))
        random.append(Arm(random_like(name), tuple(make_operator(make, draw, alpha, scope) for draw in draws), slots))
    return [Arm(UNSTEERED, (None,)), *steered, *random]


Texts = Mapping[str, tuple[str, ...]]
"""By condition, `[slots * seeds * prompts]`, prompts fastest."""


def texts_of(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    conditions: Sequence[Arm],
    seeds: Sequence[int],
    partial: Partial,
    decoding: Decoding,
    progress: bool,
) -> Texts:
    """Generate every condition's texts: under one seed all of them are rows of common batches.

    What `partial` has is not generated again; see `generate_many` for the rest.
    """
    n, encoded = len(prompts), encode(tokenizer, prompts, decoding.chat)
    ops = [op for condition in conditions for op in condition.ops]
    starts = np.cumsum([0, *(len(condition.ops) for condition in conditions)])
    runs = [start + condition.runs(n) for start, condition in zip(starts, conditions, strict=False)]
    pairs = sorted({(int(c), p) for rows in runs for row in rows for p, c in enumerate(row)})
    total = len(seeds) * len(pairs)
    # A text is kept under the places of its seed, its operator and its prompt.
    with progress_bar("Generating", "text", progress, total=total, initial=len(partial.results)) as bar:
        for s, seed in enumerate(seeds):
            todo = [(c, p) for c, p in pairs if f"{s} {c} {p}" not in partial.results]
            seeded = dataclasses.replace(decoding, seed=seed_of_rows(seed))
            for batch in generate_many(model, tokenizer, encoded, ops, todo, seeded):
                partial.add({f"{s} {c} {p}": text for (c, p), text in batch.items()})
                bar.update(len(batch))
    return {
        condition.name: tuple(
            partial.results[f"{s} {c} {p}"] for row in rows for s in range(len(seeds)) for p, c in enumerate(row)
        )
        for condition, rows in zip(conditions, runs, strict=True)
    }


def validate_metrics(metrics: Any) -> dict[str, Metric]:
    """Metrics by name; those that need no model are tried on one text, so that they fail before hours have passed.

    Raises:
        DataError: none, or one that fails.
    """
    named = as_metrics(metrics)
    if not named:
        raise DataError("metrics names no metric; pass at least one, such as metrics=['toxicity'].")
    try_metrics(named)
    return named


def references_of(references: Any, prompts: int) -> list[str] | None:
    """The user's references, one for each prompt.

    Raises:
        DataError: another number of them than prompts, or something that is no text.
    """
    if references is None:
        return None
    texts = [references] if isinstance(references, str) else as_list(references, "references")
    if len(texts) != prompts:
        raise DataError(f"There are {prompts} prompts but {len(texts)} references; pass one for each.")
    if wrong := [each for each in texts if not isinstance(each, str)]:
        raise DataError(f"references must be texts, one for each prompt, not {wrong[0]!r:.80}.")
    return texts


def numbers_of(
    metrics: Mapping[str, Metric],
    texts: Texts,
    conditions: Sequence[Arm],
    prompts: Sequence[Text],
    references: Sequence[str] | None,
    *,
    model: Any,
    tokenizer: Any,
    chat: Chat,
) -> dict[str, dict[str, np.ndarray]]:
    """By metric and condition, a number for each text; each metric is asked once for all of them.

    Without `references`, texts are compared with the unsteered ones of the same prompt and seed, and the unsteered
    condition has no number in metrics that compare: its texts would be compared with themselves.
    """
    flat = [text for condition in conditions for text in texts[condition.name]]
    compared = texts[UNSTEERED] if references is None else references
    once, n = len(texts[UNSTEERED]), len(prompts)
    ops = [
        condition.ops[c] for condition in conditions for row in condition.runs(n) for _ in range(once // n) for c in row
    ]
    setting = Setting(
        prompts=[*prompts] * (len(flat) // n),
        references=[*compared] * (len(flat) // len(compared)),
        ops=ops,
        model=model,
        tokenizer=tokenizer,
        chat=chat,
    )
    by_metric: dict[str, dict[str, np.ndarray]] = {}
    ends = np.cumsum([len(texts[condition.name]) for condition in conditions])[:-1]
    for name, numbers in measure(metrics, flat, setting).items():
        parts = zip(conditions, np.split(numbers, ends), strict=True)
        by_metric[name] = {condition.name: part for condition, part in parts}
        if references is None and "references" in metrics[name].needs:
            del by_metric[name][UNSTEERED]
    return by_metric
