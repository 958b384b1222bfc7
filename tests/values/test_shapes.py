"""The check at the public boundary: one sentence, with what came and what is expected."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from words import words

import steerfn as sf
from steerfn.discover._engine._discover import _outcome, discover
from steerfn.discover._mean_difference import MeanDifference
from steerfn.run._read import read_states
from steerfn.values._shapes import Activations, Direction, TokenMask, check_shapes
from steerfn.values._vector import _copy
from steerfn.values.files._document import assemble


@check_shapes
def scaled(rows: Activations, direction: Direction, factor: float = 1.0) -> Float[Tensor, " texts"]:
    """Rows times a direction."""
    return factor * (rows @ direction)


@check_shapes
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
    with pytest.raises(sf.ShapeError, match=r"^The result of wrong is bool\[2,3\].*; it must be a value of type Float"):
        wrong(torch.ones(2, 3, dtype=torch.bool))


def test_other_errors_pass_through():
    @check_shapes
    def failing(direction: Direction) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        failing(torch.ones(2))


class Flat(MeanDifference):
    """A method whose direction has an axis too many."""

    def finalize(self, state):
        return super().finalize(state)[None]


def test_the_boundary_is_checked_and_the_hot_path_is_not(tiny):
    """Constructors, discovery, activations and load are."""
    with pytest.raises(sf.ShapeError, match=r"^The result of _outcome is .*f64\[1,32\]"):
        discover(Flat(), tiny, words(), ["a b"], ["a c"], 1, progress=False)
    with pytest.raises(sf.ShapeError, match=r"shape \[2, 3\]; pass one of shape \[d_model\]"):
        sf.SteeringVector({0: torch.ones(2, 3)})
    with pytest.raises(sf.ShapeError, match="^The argument 'tensors' of assemble is "):
        assemble({"sites": ["resid_post[0]"]}, {"resid_post[0]": [1.0]})
    assert all(inspect.isfunction(each.__wrapped__) for each in (_copy, _outcome, assemble, read_states))
    folders = [Path(sf.__file__).parent / folder for folder in ("operators", "model", "verbs")]
    assert not [f for folder in folders for f in folder.rglob("*.py") if "@check_shapes" in f.read_text("utf8")]
