"""The grid of a sweep: every vector at every choice of sites with every strength."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steerfn.model import Layout
from steerfn.operators import Make, Operator, Scope, add, as_operator, at
from steerfn.values import DataError, SteerError, SteeringVector, as_sites, finite_number, visible_line


@dataclasses.dataclass(frozen=True)
class Config:
    """One configuration of a `sweep`.

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
    listed = v if isinstance(v, Sequence) and not isinstance(v, str) else [v]
    named: dict[Any, Any] = dict(v) if isinstance(v, Mapping) else {f"v{i}": each for i, each in enumerate(listed)}
    wrong = {name: each for name, each in named.items() if not isinstance(each, SteeringVector)}
    if not named or wrong:
        raise DataError(
            "A sweep takes a SteeringVector, a list of them, or a mapping of names to them, not "
            f"{(next(iter(wrong.values())) if wrong else v)!r:.80}."
        )
    return {str(name): each for name, each in named.items()}


def alphas_of(alphas: Any) -> list[float]:
    """The strengths, as floats.

    Raises:
        DataError: an empty list, a strength given twice, or something that is not a finite number.
    """
    if isinstance(alphas, (str, bytes, Mapping)) or not isinstance(alphas, Iterable):
        raise DataError(f"alphas must be a list of numbers, not {alphas!r:.80}.")
    strengths = [float(finite_number(f"alphas[{i}]", alpha)) for i, alpha in enumerate(alphas)]
    if not strengths:
        raise DataError(f"alphas must be a list of finite numbers, at least one, not {alphas!r:.80}.")
    if len(set(strengths)) < len(strengths):
        raise DataError(f"alphas contains a strength twice: {strengths}; pass each once.")
    return strengths


def configs_of(
    model_layout: Layout, v: Any, alphas: Any, sites: Any, scope: Scope | None, make: Make
) -> list[tuple[Config, Operator | None]]:
    """Every configuration with its operator; None where it is the unsteered model.

    Without `sites` each vector is taken at all its sites together; else at each of these alone.

    Raises:
        DataError: nothing to sweep over, or something that is not an operator.
        SiteError: a site that the model or a vector lacks.
    """
    strengths = alphas_of(alphas)
    out: list[tuple[Config, Operator | None]] = []
    for name, vector in vectors_of(v).items():
        whole = vector.resolve(model_layout.n_layers)
        each = [whole] if sites is None else [whole.select(site) for site in model_layout.resolve(as_sites(sites))]
        for part in each:
            names = tuple(site.name for site in part.sites)
            out += [(Config(name, names, alpha), make_operator(make, part, alpha, scope)) for alpha in strengths]
    return out


def make_operator(make: Make, vector: SteeringVector, alpha: float, scope: Scope | None) -> Operator | None:
    """The operator of one configuration; None where it is the unsteered model."""
    if make is add and alpha == 0:
        return None  # the unsteered model bit for bit, whatever the vector: it is run once
    try:
        op = as_operator(make(vector, alpha))
    except TypeError as error:
        raise SteerError(
            f"make must be a function of a vector and a strength, such as sf.add or sf.rotate: {error}."
        ) from None
    return op if scope is None else at(scope, op)
