"""What a comparison of vectors generates under: no steering, each vector, and random vectors of the same length."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerfn._blocks import Layout
from steerfn._errors import DataError
from steerfn._vector import SteeringVector
from steerfn.discover._random import random_vector
from steerfn.evaluate._pairs import UNSTEERED, random_like
from steerfn.operators import Operator, Scope
from steerfn.sweeping._configs import Make, made

CONTROLS = 40
"""Random vectors for each vector, unless told otherwise."""
PER_PROMPT = 10
"""Random vectors that a prompt is continued under at most. How far random vectors scatter is better known from forty of
them on a quarter of the prompts each than from ten on all, at the same cost (`benchmarks/power.py`)."""
FEWEST_PROMPTS = 2
"""Prompts of a random vector at least, or what it does could not be told from what the prompts do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
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


def named_vectors(vectors: Any) -> dict[str, SteeringVector]:
    """The vectors by name; a single one is named "v".

    Raises:
        DataError: none, something else, or a name that a control has.
    """
    found = {"v": vectors} if isinstance(vectors, SteeringVector) else vectors
    wrong = [each for each in found.values() if not isinstance(each, SteeringVector)] if _is_named(found) else [found]
    if wrong:
        raise DataError(
            "vectors is a SteeringVector, or a mapping of names to at least one, such as {'v1': v1, 'v2': v2}, not "
            f"{wrong[0]!r:.80}."
        )
    taken = {UNSTEERED, *map(random_like, found)} & set(found)
    if taken:
        raise DataError(f"A vector cannot be named {min(taken)!r}, which is the name of a control; choose another.")
    return dict(found)


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(name, str) and name for name in value)


def strengths_of(alpha: Any, names: Mapping[str, Any]) -> dict[str, float]:
    """The strength of each vector, of one for all or one for each name.

    Raises:
        DataError: something that is no finite number, or other names than the vectors'.
    """
    if isinstance(alpha, Mapping) and set(alpha) != set(names):
        raise DataError(
            f"alpha has strengths for {sorted(map(str, alpha))}, and the vectors are {sorted(names)}; name each."
        )
    given = alpha if isinstance(alpha, Mapping) else dict.fromkeys(names, alpha)
    return {name: _strength(given[name]) for name in names}


def _strength(alpha: Any) -> float:
    try:
        found = float("nan") if isinstance(alpha, (bool, str)) else float(alpha)
    except (TypeError, ValueError):
        found = float("nan")
    if not math.isfinite(found):
        raise DataError(f"alpha is a finite number, or one for each vector by name, not {alpha!r:.80}.")
    return found


def checked_controls(controls: Any) -> None:
    """Refuse what is no number of random vectors.

    Raises:
        DataError: it is none.
    """
    if isinstance(controls, bool) or not isinstance(controls, int) or controls < 1:
        raise DataError(f"controls is a number of random vectors for each vector, from 1, not {controls!r}.")


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
    checked_controls(controls)
    wanted, n = math.ceil(controls / PER_PROMPT), max(units) + 1
    blocks = max(1, min(wanted, n // FEWEST_PROMPTS))
    each = math.ceil(controls / wanted)
    block = np.empty(n, int)
    block[np.random.default_rng(seed).permutation(n)] = np.arange(n) % blocks
    return each * block[np.asarray(units)] + np.arange(each)[:, None], block


def conditions_of(
    found: Layout,
    vectors: Mapping[str, SteeringVector],
    strengths: Mapping[str, float],
    *,
    operator: Make,
    scope: Scope | None,
    slots: np.ndarray,
    seed: int,
) -> list[Condition]:
    """Every condition with its operators.

    Args:
        found: the model's layout.
        vectors: the vectors by name.
        strengths: their strengths.
        operator: makes an operator of a vector and a strength.
        scope: where the operators act.
        slots: which random vectors each prompt is continued under, as from `random_slots`. Of `k` in all the `j`-th of
            the `i`-th vector is drawn with `seed + i * k + j`, so that two vectors of one length have different ones.
        seed: of the random vectors.

    Raises:
        SteerError: an operator that is none.
    """
    controls = int(slots.max()) + 1
    steered, random = [], []
    for i, (name, vector) in enumerate(vectors.items()):
        whole, alpha = vector.resolve(found.n_layers), strengths[name]
        draws = [random_vector(like=whole, seed=seed + i * controls + j) for j in range(controls)]
        steered.append(Condition(name, (made(operator, whole, alpha, scope),)))
        random.append(Condition(random_like(name), tuple(made(operator, draw, alpha, scope) for draw in draws), slots))
    return [Condition(UNSTEERED, (None,)), *steered, *random]
