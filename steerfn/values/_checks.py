"""Checks of arguments: integers and finite numbers, as plain Python numbers, and whether tensors are finite.

Whether numbers are finite is asked where people give them, and never inside a transform, which has no values.
"""

import math
import numbers
import operator
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn.values._errors import DataError


def plain_number(value: Any) -> Any:
    """A number of numpy's as Python's, an array of them as a list; anything else as it is."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def as_integer(value: Any) -> int | None:
    """Python's int for an int, an integer of numpy's or a 0-d integer tensor; None for anything else, a bool too."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")) or getattr(value, "ndim", 0):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def integer(name: str, value: Any, least: int | None = None, most: int | None = None, *, hint: str = "") -> int:
    """An argument that is an integer, as Python's int.

    Args:
        name: what the caller calls it.
        value: the argument: an int, an integer of numpy's or a 0-d integer tensor, but not a bool.
        least: the smallest integer that it may be.
        most: the largest; needs `least`.
        hint: the end of the error, such as what another value stands for.

    Raises:
        DataError: something else, or an integer out of bounds.

    Example:
        >>> integer("layers", 3, 1)
        3
        >>> integer("layers", 0, 1)
        Traceback (most recent call last):
        ...
        steerfn.values._errors.DataError: `layers` must be a positive integer, got 0.
    """
    number = as_integer(value)
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        expected = {None: "an integer", 0: "a non-negative integer", 1: "a positive integer"}.get(least)
        if most is not None:
            expected = f"an integer from {least} to {most}"
        raise DataError(_sentence(name, expected or f"an integer >= {least}", value, hint))
    return number


def positive_int(name: str, value: Any, *, hint: str = "") -> int:
    """An argument that is an integer from 1, such as a batch size. See `integer`."""
    return integer(name, value, 1, hint=hint)


def finite_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    hint: str = "",
) -> float:
    """An argument that is a finite number, as Python's int or float.

    Args:
        name: what the caller calls it.
        value: the argument: a real number, numpy's included, or a 0-d tensor, but not a bool.
        above, below: bounds that it may not touch.
        least, most: bounds that it may touch.
        hint: the end of the error, such as what another value stands for.

    Raises:
        DataError: something else, NaN or infinity, or a number out of bounds.

    Example:
        >>> finite_number("held_out", 0.25, above=0, below=1)
        0.25
        >>> finite_number("held_out", 1, above=0, below=1)
        Traceback (most recent call last):
        ...
        steerfn.values._errors.DataError: `held_out` must be a finite number > 0 and < 1, got 1.
    """
    plain = value.item() if isinstance(value, Tensor) and not value.ndim else plain_number(value)
    number: Any = float(plain) if isinstance(plain, numbers.Real) and not isinstance(plain, int) else plain
    is_number = type(number) in (int, float) and abs(number) <= sys.float_info.max
    if is_number and above < number < below and least <= number <= most:
        return number
    bounds = {">": above, ">=": least, "<": below, "<=": most}
    limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if abs(bound) < math.inf)
    raise DataError(_sentence(name, f"a finite number {limits}".rstrip(), value, hint))


def _sentence(name: str, expected: str, value: Any, hint: str) -> str:
    return f"`{name}` must be {expected}, got {value!r:.80}{hint and f'; {hint}'}."


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
