"""What a sweep goes over: every vector at every choice of sites with every strength."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steerfn._blocks import Layout
from steerfn._errors import DataError, SteerError
from steerfn._site import as_sites
from steerfn._vector import SteeringVector
from steerfn._visible import visible_line
from steerfn.operators import Operator, Scope, add, at
from steerfn.operators._base import as_operator

Make = Callable[[SteeringVector, float], Operator]
"""How a vector and a strength become an operator: `sf.add`, `sf.rotate`, a function of one's own."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One configuration of a sweep.

    Attributes:
        vector: the name of the vector.
        sites: the names of the sites at which it acts.
        alpha: the strength.
    """

    vector: str
    sites: tuple[str, ...]
    alpha: float

    def __str__(self) -> str:
        where = self.sites[0] if len(self.sites) == 1 else f"{len(self.sites)} sites"
        return visible_line(f"{self.vector} at {where}, alpha {self.alpha:g}")


def vectors_of(v: Any) -> dict[str, SteeringVector]:
    """The vectors by name: of one, of several ("v0", "v1", ...), or named by the user.

    Raises:
        DataError: none, or something else.
    """
    if isinstance(v, SteeringVector):
        return {"v": v}
    named = dict(v) if isinstance(v, Mapping) else {f"v{i}": each for i, each in enumerate(_listed(v))}
    wrong = {name: each for name, each in named.items() if not isinstance(each, SteeringVector)}
    if not named or wrong:
        raise DataError(
            "A sweep takes a SteeringVector, a list of them, or a mapping of names to them, not "
            f"{(next(iter(wrong.values())) if wrong else v)!r:.80}."
        )
    return {str(name): each for name, each in named.items()}


def _listed(v: Any) -> Sequence[Any]:
    return v if isinstance(v, Sequence) and not isinstance(v, str) else [v]


def alphas_of(alphas: Any) -> list[float]:
    """The strengths, as floats.

    Raises:
        DataError: none, the same one twice, or something that is no finite number.
    """
    try:
        found = [float(alpha) for alpha in alphas]
    except (TypeError, ValueError):
        raise DataError(f"alphas is a list of numbers, not {alphas!r:.80}.") from None
    if not found or not all(map(math.isfinite, found)):
        raise DataError(f"alphas is a list of finite numbers, at least one, not {alphas!r:.80}.")
    if len(set(found)) < len(found):
        raise DataError(f"alphas names a strength twice: {found}; pass each once.")
    return found


def configs_of(
    found: Layout, v: Any, alphas: Any, sites: Any, scope: Scope | None, operator: Make
) -> list[tuple[Config, Operator | None]]:
    """Every configuration with its operator; None where it is the unsteered model.

    Args:
        found: the model's layout.
        v: one vector, several, or named ones.
        alphas: the strengths.
        sites: None takes each vector at all its sites together; else each of these sites alone.
        scope: where the operators act.
        operator: makes an operator of a vector and a strength.

    Raises:
        DataError: nothing to sweep over, or an operator that is none.
        SiteError: a site that the model or a vector lacks.
    """
    strengths = alphas_of(alphas)
    out: list[tuple[Config, Operator | None]] = []
    for name, vector in vectors_of(v).items():
        whole = vector.resolve(found.n_layers)
        each = [whole] if sites is None else [whole.select(site) for site in found.resolve(as_sites(sites))]
        for part in each:
            for alpha in strengths:
                out.append(
                    (Config(name, tuple(site.name for site in part.sites), alpha), made(operator, part, alpha, scope))
                )
    return out


def made(operator: Make, vector: SteeringVector, alpha: float, scope: Scope | None) -> Operator | None:
    """The operator of one configuration; None where it is the unsteered model."""
    if operator is add and alpha == 0:
        return None  # the unsteered model bit for bit, whatever the vector: it is run once
    try:
        op = as_operator(operator(vector, alpha))
    except TypeError as error:
        raise SteerError(
            f"operator is a function of a vector and a strength, such as sf.add or sf.rotate: {error}."
        ) from None
    return op if scope is None else at(scope, op)
