"""Batches: how many items go into one, and what happens where memory runs out."""

import pytest
import torch

import steerfn as sf
from steerfn.run import Budget

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def batches(budget, sizes, most=100, **options):
    """The batches that were tried and those that ran, where a step holds items of `most` tokens, padding included."""
    tried = []

    def step(batch):
        tried.append(list(batch))
        if len(batch) * batch[0] > most:
            raise torch.OutOfMemoryError("no")
        return sum(batch)

    ran = list(budget.run(sizes, step, lambda size: size, **options))
    assert [total for _, total in ran] == [sum(batch) for batch, _ in ran]
    return tried, [list(batch) for batch, _ in ran]


def test_a_batch_holds_items_as_long_as_its_longest_or_as_many_as_asked():
    sizes = [6, 5, 3, 3, 2, 1]
    tried, ran = batches(Budget(None, 12), sizes)
    assert tried == ran == [[6, 5], [3, 3, 2, 1]]
    assert batches(Budget(4, 12), sizes)[1] == [[6, 5, 3, 3], [2, 1]]
    assert batches(Budget(None, 1), sizes)[1] == [[size] for size in sizes]
    assert batches(Budget(None, 12), [])[1] == []


def test_what_cannot_run_together_runs_apart():
    def alike(batch):
        return next((n for n, size in enumerate(batch) if size != batch[0]), len(batch))

    assert batches(Budget(None, 12), [6, 5, 3, 3, 2, 1], together=alike)[1] == [[6], [5], [3, 3], [2], [1]]


def test_where_memory_runs_out_batches_are_halved_and_grow_with_shorter_items():
    tried, ran = batches(Budget(None, 64), [8, 8, 8, 8, 8, 2, 2, 2, 2, 2, 2, 2, 2], most=20)
    assert tried[:3] == [[8, 8, 8, 8, 8, 2, 2, 2], [8, 8, 8, 8], [8, 8]]
    assert ran == [[8, 8], [8, 8], [8, 2], [2] * 7]


@pytest.mark.parametrize(("budget", "sizes"), [(Budget(2, 64), [8, 8]), (Budget(None, 64), [8, 8])])
def test_a_given_batch_or_a_single_item_that_does_not_fit_raises(budget, sizes):
    with pytest.raises(torch.OutOfMemoryError):
        batches(budget, sizes, most=7)


def test_the_budget_of_a_batch_size():
    assert Budget.of("auto", CPU, (3, 5)) == Budget(None, 3) and Budget.of("auto", GPU, (3, 5)) == Budget(None, 5)
    assert Budget.of(7, CPU).limit == 7
    with pytest.raises(sf.DataError, match="^`batch_size` must be a positive integer, got 0; 'auto' fits batches"):
        Budget.of(0, CPU)
