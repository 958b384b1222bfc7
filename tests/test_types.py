"""The check at the public boundary: one sentence, with what came and what is expected."""

import re
import subprocess
import sys

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import steerfn as sf
from steerfn._types import Activations, Direction, TokenMask, checked


@checked
def scaled(rows: Activations, direction: Direction, factor: float = 1.0) -> Float[Tensor, " texts"]:
    """Rows times a direction."""
    return factor * (rows @ direction)


@checked
def wrong(mask: TokenMask) -> Float[Tensor, "batch seq"]:
    return mask


def test_a_right_call_passes_and_keeps_its_name():
    rows, direction = torch.ones(3, 4), torch.arange(4.0)
    assert torch.equal(scaled(rows, direction), rows @ direction)
    assert torch.equal(scaled(rows.half(), direction.half(), factor=2.0), 2 * (rows @ direction).half())
    assert scaled.__name__ == "scaled" and scaled.__doc__ == "Rows times a direction."


def test_a_wrong_argument_is_one_sentence():
    for call, which in [
        (lambda: scaled([[1.0]], torch.ones(1)), "The argument 'rows' of scaled is "),
        (lambda: scaled(torch.ones(3), torch.ones(3)), "The argument 'rows' of scaled is f32[3]"),
        (
            lambda: scaled(torch.ones(3, 4, dtype=torch.int64), torch.ones(4)),
            "The argument 'rows' of scaled is i64[3,4]",
        ),
        (lambda: scaled(torch.ones(3, 4), torch.ones(4), factor="a"), "The argument 'factor' of scaled is 'a'"),
    ]:
        with pytest.raises(sf.ShapeError) as caught:
            call()
        text = str(caught.value)
        assert text.startswith(which), text
        assert re.fullmatch(r"[^\n]*; pass a value of type [^\n]*\.", text), text
        assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_widths_that_disagree_are_refused():
    with pytest.raises(sf.ShapeError, match=r"The argument 'direction' of scaled is f32\[5\]"):
        scaled(torch.ones(3, 4), torch.ones(5))


def test_results_are_checked_too():
    with pytest.raises(sf.ShapeError):
        wrong(torch.ones(2, 3, dtype=torch.bool))


def test_other_errors_pass_through():
    @checked
    def failing(direction: Direction) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        failing(torch.ones(2))


def test_beartype_is_loaded_by_the_first_checked_call():
    code = "import sys, steerfn; assert 'beartype' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
