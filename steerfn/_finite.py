"""Whether numbers are finite: asked where people give them, and never inside a transform, which has no values."""

import torch
from torch import Tensor


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor is inside a `torch.func` transform, where its values cannot be looked at."""
    if torch.compiler.is_compiling():  # which does not know the question
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


def has_values(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or is_transformed(tensor))


def is_finite(tensor: Tensor, most: float = torch.inf) -> bool:
    """Whether every entry is a finite number of at most `most`; True where the values cannot be looked at."""
    if not has_values(tensor) or not tensor.numel():
        return True
    largest = float(tensor.detach().abs().amax())
    return largest < torch.inf and largest <= most  # a NaN is the largest of all, and neither
