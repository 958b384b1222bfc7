"""Maps made of sums are those that are made of all states at once, and so is their fit."""

import pytest
import torch

from steerfn.discover._engine._linear_map import PENALTIES, LinearMap, PairSums, best_penalty

RANDOM = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=RANDOM, dtype=torch.float64)


def states(n, source, target, noise=0.3, seed=0):
    """States of a source and of a target that is a noisy linear function of them, far from zero."""
    mix = torch.randn(source, target, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = normal(n, source) * torch.linspace(0.1, 3, source, dtype=torch.float64) + 5
    return x, x @ mix + noise * normal(n, target) - 20


def sums(x, y, parts=3):
    """The sums, in several pieces."""
    found = PairSums.zero(x.shape[1], y.shape[1])
    for some, others in zip(x.chunk(parts), y.chunk(parts), strict=True):
        found = found.merge(PairSums.zero(x.shape[1], y.shape[1]).plus(some, others))
    return found


def predict(between, x):
    return (x - between.source) @ between.weight + between.target


def r2(predicted, y):
    left, spread = (y - predicted).square().sum(0), (y - y.mean(0)).square().sum(0)
    return float((1 - left / spread).mean()), float(1 - left.sum() / spread.sum())


def test_least_squares():
    x, y = states(60, 5, 4)
    between = LinearMap.fit(sums(x, y), "least_squares", 0.0)
    ones = torch.ones(60, 1, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
    torch.testing.assert_close(between.weight, expected[:-1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(predict(between, x), torch.cat([x, ones], 1) @ expected)


def test_least_squares_of_a_source_that_does_not_fill_its_width_leaves_the_rest_alone():
    x, y = states(60, 5, 4)
    wider = torch.cat([x, x[:, :2] - x[:, 2:4]], 1)
    between = LinearMap.fit(sums(wider, y), "least_squares", 0.0)
    torch.testing.assert_close(predict(between, wider), predict(LinearMap.fit(sums(x, y), "least_squares", 0.0), x))


@pytest.mark.parametrize("penalty", [1e-3, 0.5])
@pytest.mark.parametrize("n", [60, 4])
def test_ridge(n, penalty):
    x, y = states(n, 6, 4)
    a, b = x - x.mean(0), y - y.mean(0)
    covariance = a.T @ a / n
    expected = torch.linalg.solve(covariance + penalty * covariance.trace() / 6 * torch.eye(6), a.T @ b / n)
    torch.testing.assert_close(LinearMap.fit(sums(x, y), "ridge", penalty).weight, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("source", "target"), [(5, 5), (4, 7), (7, 4)])
def test_orthogonal_is_the_best_rotation_of_the_narrower_filled_up_with_zeros(source, target):
    x, y = states(80, source, target)
    between = LinearMap.fit(sums(x, y), "orthogonal", 0.0)
    width = max(source, target)
    a, b = (torch.nn.functional.pad(each - each.mean(0), (0, width - each.shape[1])) for each in (x, y))
    left, _, right = torch.linalg.svd(a.T @ b)
    turned = (a @ left @ right)[:, :target]
    scale = (turned * b[:, :target]).sum() / turned.square().sum()
    torch.testing.assert_close(predict(between, x), scale * turned + y.mean(0))
    gram = between.weight @ between.weight.T if source <= target else between.weight.T @ between.weight
    torch.testing.assert_close(gram, float(scale) ** 2 * torch.eye(min(source, target), dtype=torch.float64))


@pytest.mark.parametrize("method", ["least_squares", "ridge", "orthogonal"])
def test_the_fit_is_that_of_the_predictions(method):
    (x, y), (other, seen) = states(60, 5, 4), states(30, 5, 4)
    between = LinearMap.fit(sums(x, y), method, 0.01)
    torch.testing.assert_close(
        torch.tensor(between.r2(sums(other, seen))), torch.tensor(r2(predict(between, other), seen))
    )


def test_a_dimension_that_does_not_vary_does_not_count_in_the_mean():
    (x, y), (other, seen) = states(60, 5, 4), states(30, 5, 4)
    still = [torch.cat([each, torch.full((len(each), 1), 1e4, dtype=torch.float64)], 1) for each in (y, seen)]
    plain = LinearMap.fit(sums(x, y), "ridge", 0.01).r2(sums(other, seen))
    wider = LinearMap.fit(sums(x, still[0]), "ridge", 0.01).r2(sums(other, still[1]))
    torch.testing.assert_close(torch.tensor(plain), torch.tensor(wider))


@pytest.mark.parametrize("noise", [0.01, 3.0])
@pytest.mark.parametrize("n", [12, 60])
def test_the_best_penalty_is_the_best_of_all_one_by_one(n, noise):
    (x, y), (other, seen) = states(n, 10, 4, noise), states(40, 10, 4, noise)
    fits = {p: r2(predict(LinearMap.fit(sums(x, y), "ridge", p), other), seen)[0] for p in PENALTIES}
    penalty, fit = best_penalty(sums(x, y), sums(other, seen), "ridge")
    assert penalty == max(fits, key=lambda each: fits[each]) and fit == pytest.approx(fits[penalty], abs=1e-9)


def test_methods_without_a_penalty():
    (x, y), (other, seen) = states(60, 5, 4), states(30, 5, 4)
    for method in ("least_squares", "orthogonal"):
        fit = LinearMap.fit(sums(x, y), method, 0.0).r2(sums(other, seen))[0]
        assert best_penalty(sums(x, y), sums(other, seen), method) == (0.0, fit)
