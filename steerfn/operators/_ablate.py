"""`ablate` and `project`: a direction taken out of a state, or all but the direction."""

import torch
from torch import Tensor

from steerfn.operators._on_direction import OnDirection, along, is_zero, shift
from steerfn.operators._operator import Operator, as_vector
from steerfn.values import SteeringVector, public, struct


@struct
class Ablate(OnDirection):
    """See `ablate`."""

    @staticmethod
    def law(hidden: Tensor, h: Tensor, u: Tensor) -> Tensor:
        return shift(hidden, -along(h, u) * u)


@struct
class Project(OnDirection):
    """See `project`."""

    @staticmethod
    def law(hidden: Tensor, h: Tensor, u: Tensor) -> Tensor:
        return torch.where(is_zero(u), hidden, (along(h, u) * u).to(hidden.dtype))


@public
def ablate(vector: SteeringVector) -> Operator:
    """Remove the direction from the hidden state: `h' = h - <h, u> u`, with `u = v / |v|`.

    The scale of `vector` does not matter; a zero direction changes nothing.

    Args:
        vector: the vector.

    Raises:
        SteerError: `vector` is not a vector.

    Source: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction".

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([3.0, 0.0])}), torch.ones(1, 1, 2)
        >>> sf.ablate(v)(h, sf.Info.of(h))
        tensor([[[0., 1.]]])
    """
    return Ablate(as_vector(vector, "ablate"))


@public
def project(vector: SteeringVector) -> Operator:
    """Keep only the direction: `h' = <h, u> u`, with `u = v / |v|`; the complement of `ablate`.

    A zero direction changes nothing.

    Args:
        vector: the vector; its scale does not matter.

    Raises:
        SteerError: `vector` is not a vector.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.tensor([3.0, 0.0])}), torch.ones(1, 1, 2)
        >>> sf.project(v)(h, sf.Info.of(h))
        tensor([[[1., 0.]]])
    """
    return Project(as_vector(vector, "project"))
