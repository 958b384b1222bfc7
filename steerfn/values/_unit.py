"""The length of a direction, and the direction of length 1, of huge and of tiny ones too."""

import torch
from torch import Tensor


def unit(direction: Tensor) -> Tensor:
    """`v / |v|` for the last axis, and 0 (with finite gradients) for a zero direction.

    Scaled by the largest entry first, so that huge and tiny directions neither overflow nor vanish.
    """
    largest = direction.detach().abs().amax(-1, keepdim=True)
    scaled = direction / torch.where(largest == 0, torch.ones_like(largest), largest)
    squared = (scaled * scaled).sum(-1, keepdim=True)
    return scaled / torch.where(squared == 0, torch.ones_like(squared), squared).sqrt()


def norm(direction: Tensor) -> float:
    """The L2 norm, computed in float64, and scaled by the largest entry first, as in `unit`."""
    d = direction.detach().double().cpu()
    largest = d.abs().max()
    return float(largest * torch.linalg.vector_norm(d / largest) if largest > 0 else largest)
