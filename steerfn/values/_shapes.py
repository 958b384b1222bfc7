"""Shapes named once, and the check that guards the public boundary.

Axis names used everywhere: `batch` rows, `seq` tokens, `d_model` the residual stream, `width` either
`d_model` or `d_head` (the width of the site at hand), `texts` the rows of a discovery matrix.
"""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from jaxtyping import Bool, Float, Int, TypeCheckError, jaxtyped
from torch import Tensor

from steerfn.values._errors import ShapeError

Hidden = Float[Tensor, "batch seq width"]
Direction = Float[Tensor, " width"]
TokenMask = Bool[Tensor, "batch seq"]
TokenIndex = Int[Tensor, "batch seq"]
Activations = Float[Tensor, "texts width"]

P = ParamSpec("P")
R = TypeVar("R")

_PARAMETER = re.compile(r"parameter '?(\w+)'?")


def check_shapes(function: Callable[P, R]) -> Callable[P, R]:
    """Check a public function's arguments against its annotations, shapes included.

    A mismatch raises `ShapeError` in one sentence instead of a type checker's report. It costs about
    50 us a call, so it guards the boundary and never the hot path. beartype is loaded at the first call.
    """

    @functools.cache
    def guard() -> Callable[P, R]:
        from beartype import beartype

        return jaxtyped(typechecker=beartype)(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return guard()(*args, **kwargs)
        except TypeCheckError as error:
            raise ShapeError(_sentence(function.__name__, str(error))) from None

    return call


def _sentence(name: str, report: str) -> str:
    """One sentence out of a jaxtyping report: which argument, what came, what is expected."""
    report_lines = dict(re.findall(r"^(Actual value|Expected type): (.*)$", report, flags=re.MULTILINE))
    parameter = _PARAMETER.search(report)
    which = f"The argument '{parameter.group(1)}' of {name}" if parameter else f"The result of {name}"
    actual, expected = report_lines.get("Actual value", "something else"), report_lines.get("Expected type", "?")
    expected = expected.rstrip(".").replace("<class '", "").replace("'>", "")
    return f"{which} is {actual.rstrip('.')[:200]}; {'pass' if parameter else 'it must be'} a value of type {expected}."
