"""Laws of discovery: what a method makes of its texts depends on the texts, not on how they come."""

from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from methods import METHODS, planted, rows

import steerfn as sf
from steerfn.discover._engine._job import Job
from steerfn.discover._engine._method import StateRows
from steerfn.run._read import Batch

SITE = sf.resid_post[0]
every_method = pytest.mark.parametrize("name", METHODS)
seeds = st.integers(0, 2**31)
widths = st.integers(1, 8)


def sides(data: Any, name: str, width: int | None = None) -> tuple[StateRows, StateRows]:
    """Activations that a method takes, of full rank."""
    count = st.integers(12, 24)
    first = data.draw(count)
    counts = first, first if METHODS[name].paired else data.draw(count)
    positive, negative, _ = planted(data.draw(seeds), counts, width=data.draw(widths) if width is None else width)
    return positive, negative


def close(found: torch.Tensor, expected: torch.Tensor, part: float) -> bool:
    return float((found - expected).norm()) <= part * float(expected.norm())


@every_method
@given(data=st.data())
def test_any_batches_in_any_order_merged_in_any_order_are_one_pass(name, data):
    """Texts come as they will, the halves of a pair apart, read by one worker or by several."""
    method, (positive, negative) = METHODS[name], sides(data, name)
    values, width = torch.cat([positive.values, negative.values]), positive.values.shape[-1]
    planned: Any = SimpleNamespace(sites=(SITE,))
    job = Job(planned, len(positive), method, (width,))
    order = data.draw(st.permutations(range(len(values))))
    workers = data.draw(st.integers(1, 4))
    runs = [job.start() for _ in range(workers)]
    while order:
        texts, order = order[: (size := data.draw(st.integers(1, 9)))], order[size:]
        worker = data.draw(st.integers(0, workers - 1))
        batch = Batch(texts, {SITE: values[texts]}, int(runs[worker].done) + 1)
        runs[worker] = job.step(runs[worker], batch)
    while len(runs) > 1:
        first, second = data.draw(st.permutations(runs))[:2]
        runs = [run for run in runs if run is not first and run is not second] + [job.merge(first, second)]
    assert not any(len(half) for half in runs[0].waiting[0])
    found, expected = method.finalize(runs[0].states[0]), method.of(positive, negative)
    assert close(found, expected, 1e-6)


@every_method
@given(data=st.data())
def test_the_state_of_no_texts_is_neutral(name, data):
    method, (positive, negative) = METHODS[name], sides(data, name)
    nothing = method.init(positive.values.shape[-1])
    state = method.update(nothing, positive, negative)
    expected = method.finalize(state)
    for merged in (method.merge(nothing, state), method.merge(state, nothing)):
        assert torch.equal(method.finalize(merged), expected)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "lat"])  # swaps pairs by their numbers
@given(data=st.data())
def test_permuted_texts_give_the_same_direction(name, data):
    method, (positive, negative) = METHODS[name], sides(data, name)
    order = data.draw(st.permutations(range(len(positive))))
    other = order if method.paired else data.draw(st.permutations(range(len(negative))))
    permuted = rows(positive.values[order]), rows(negative.values[other])
    assert close(method.of(*permuted), method.of(positive, negative), 1e-9)


@every_method
@given(data=st.data())
def test_swapped_sides_turn_the_direction_round(name, data):
    method, (positive, negative) = METHODS[name], sides(data, name)
    assert close(-method.of(negative, positive), method.of(positive, negative), 1e-9)


@every_method
@given(data=st.data())
def test_the_same_call_gives_the_same_bits(name, data):
    method, (positive, negative) = METHODS[name], sides(data, name)
    first = method.of(positive, negative)
    torch.manual_seed(data.draw(seeds))
    assert torch.equal(first, method.of(positive, negative))


@every_method
@given(data=st.data())
def test_moved_activations_give_the_same_direction(name, data):
    method, (positive, negative) = METHODS[name], sides(data, name)
    shift = 10 * torch.randn(positive.values.shape[-1], generator=torch.Generator().manual_seed(data.draw(seeds)))
    moved = rows(positive.values + shift), rows(negative.values + shift)
    assert close(method.of(*moved), method.of(positive, negative), 1e-9)


@every_method
@given(data=st.data())
def test_turned_activations_turn_the_direction(name, data):
    method, (positive, negative) = METHODS[name], sides(data, name, width=6)
    random = torch.Generator().manual_seed(data.draw(seeds))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=random, dtype=torch.float64)).Q
    turned = rows(positive.values @ turn.T), rows(negative.values @ turn.T)
    assert close(method.of(*turned), turn @ method.of(positive, negative), 1e-9)


@every_method
@given(data=st.data())
def test_the_length_is_what_the_sides_differ_by_along_the_direction(name, data):
    """`v = u <u, d>`: an alpha of 1 takes a negative as far along `u` as the positives are."""
    method, (positive, negative) = METHODS[name], sides(data, name)
    found, difference = method.of(positive, negative), positive.values.mean(0) - negative.values.mean(0)
    assert float(found @ found) == pytest.approx(float(found @ difference), rel=1e-9)
