"""Arguments that are numbers: what is taken, as what, and what the errors say."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import steerfn as sf
from steerfn.values import finite_number, integer, positive_int


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_an_integer_is_pythons(value):
    assert type(integer("n", value)) is int and integer("n", value, 3, 3) == positive_int("n", value) == 3


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), 3.0, np.float32(3), torch.tensor(3.0), torch.tensor([3]), "3", None, [3]],
)
def test_what_is_not_an_integer(value):
    with pytest.raises(sf.DataError, match=f"^{re.escape(f'`n` must be an integer, got {value!r}.')}$"):
        integer("n", value)


@pytest.mark.parametrize(
    ("bounds", "value", "wanted"),
    [
        ((1,), 0, "a positive integer, got 0"),
        ((0,), -1, "a non-negative integer, got -1"),
        ((2,), 1, "an integer >= 2, got 1"),
        ((1, 4), 5, "an integer from 1 to 4, got 5"),
        ((1, 4), 0, "an integer from 1 to 4, got 0"),
    ],
)
def test_an_integer_out_of_bounds(bounds, value, wanted):
    with pytest.raises(sf.DataError, match=f"^`n` must be {wanted}; the fix.$"):
        integer("n", value, *bounds, hint="the fix")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2, int),
        (2.0, float),
        (np.float32(2), float),
        (np.int64(2), int),
        (torch.tensor(2.0), float),
        (Fraction(2), float),
    ],
)
def test_a_number_is_pythons(value, kind):
    number = finite_number("x", value, least=2, most=2, above=1, below=3)
    assert type(number) is kind and number == 2


@pytest.mark.parametrize(
    "value", [True, np.True_, torch.tensor(True), math.nan, math.inf, 10**400, "2", None, torch.ones(1), 1j]
)
def test_what_is_not_a_finite_number(value):
    with pytest.raises(sf.DataError, match=f"^{re.escape(f'`x` must be a finite number, got {value!r:.80}.')}$"):
        finite_number("x", value)


@pytest.mark.parametrize(
    ("bounds", "value", "wanted"),
    [
        ({"above": 0}, 0, "> 0, got 0"),
        ({"least": 0, "below": 1}, 1, ">= 0 and < 1, got 1"),
        ({"least": 0, "most": 1}, -0.5, ">= 0 and <= 1, got -0.5"),
    ],
)
def test_a_number_out_of_bounds(bounds, value, wanted):
    with pytest.raises(sf.DataError, match=f"^`x` must be a finite number {wanted}; the fix.$"):
        finite_number("x", value, **bounds, hint="the fix")
