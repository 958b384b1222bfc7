"""Every method that makes a direction of the activations of two sides, and activations whose direction is known."""

import torch
from torch import Tensor

from steerfn.discover._caa import ContrastiveAddition
from steerfn.discover._engine._method import Method, StateRows
from steerfn.discover._lat import Lat
from steerfn.discover._lda import Lda
from steerfn.discover._linear_probe import LinearProbe
from steerfn.discover._mean_difference import MeanDifference
from steerfn.discover._pca import DifferencePca, PooledPca

METHODS: dict[str, Method] = {
    "mean_difference": MeanDifference(),
    "caa": ContrastiveAddition(),
    "pca": DifferencePca(),
    "pca pooled": PooledPca(),
    "lat": Lat(),
    "linear_probe": LinearProbe(),
    "lda": Lda(),
    "lda without shrinkage": Lda(0.0),
}
PAIRED = {name: method for name, method in METHODS.items() if method.paired}
UNPAIRED = {name: method for name, method in METHODS.items() if not method.paired}


def rows(values: Tensor, first: int = 0) -> StateRows:
    """Activations numbered from `first`."""
    return StateRows(torch.arange(first, first + len(values)), values.double())


def planted(
    seed: int, counts: tuple[int, int], width: int = 8, gap: float = 3.0, noise: float = 0.6
) -> tuple[StateRows, StateRows, Tensor]:
    """`h = base + topic_i + noise (+ gap u for the positives)`: both sides and the unit direction `u`."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    axis = normal(width)
    axis = axis / axis.norm()
    topics, base = noise * normal(max(counts), width), 5 * normal(width)
    sides = [base + topics[:n] + noise * normal(n, width) for n in counts]
    return rows(sides[0] + gap * axis), rows(sides[1]), axis
