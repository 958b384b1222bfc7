"""What a comparison of vectors generates under: no steering, each vector, and random vectors of the same length."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from steerfn._blocks import Layout
from steerfn._errors import DataError
from steerfn._vector import SteeringVector
from steerfn.discover._random import random_vector
from steerfn.evaluate._pairs import UNSTEERED, random_like
from steerfn.operators import Operator, Scope
from steerfn.sweeping._configs import Make, made


@dataclasses.dataclass(frozen=True)
class Condition:
    """One way to generate.

    Attributes:
        name: "unsteered", a vector's name, or "random like" one.
        ops: its operator, or one for each draw of a random vector; None is the unsteered model.
    """

    name: str
    ops: tuple[Operator | None, ...]


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


def conditions_of(
    found: Layout,
    vectors: Mapping[str, SteeringVector],
    strengths: Mapping[str, float],
    *,
    operator: Make,
    scope: Scope | None,
    controls: int,
    seed: int,
) -> list[Condition]:
    """Every condition with its operators.

    Args:
        found: the model's layout.
        vectors: the vectors by name.
        strengths: their strengths.
        operator: makes an operator of a vector and a strength.
        scope: where the operators act.
        controls: random vectors for each vector; the `j`-th of the `i`-th vector is drawn with
            `seed + i * controls + j`, so that two vectors of one length have different ones.
        seed: of the random vectors.

    Raises:
        DataError: no number of random vectors.
        SteerError: an operator that is none.
    """
    checked_controls(controls)
    steered, random = [], []
    for i, (name, vector) in enumerate(vectors.items()):
        whole, alpha = vector.resolve(found.n_layers), strengths[name]
        draws = [random_vector(like=whole, seed=seed + i * controls + j) for j in range(controls)]
        steered.append(Condition(name, (made(operator, whole, alpha, scope),)))
        random.append(Condition(random_like(name), tuple(made(operator, draw, alpha, scope) for draw in draws)))
    return [Condition(UNSTEERED, (None,)), *steered, *random]
