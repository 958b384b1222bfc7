"""LDA: against scikit-learn, with fixed and with computed shrinkage, and where the covariance has no inverse."""

import numpy as np
import pytest
import torch
from methods import planted, rows
from sklearn.covariance import OAS, shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from words import WORDS, words

import steerfn as sf
from steerfn.discover._engine._moments import Scatter
from steerfn.discover._lda import Lda, oas, shrink

pytestmark = pytest.mark.steady

TEXTS = [" ".join(WORDS[(3 * i + j) % 26] for j in range(1 + i % 5)) for i in range(24)]
SHAPES = [((60, 60), 8), ((70, 25), 8), ((6, 9), 40), ((1, 4), 40)]


def scaled(axis, positive, negative):
    difference = positive.mean(0) - negative.mean(0)
    axis = torch.as_tensor(axis, dtype=torch.float64)
    return axis * (axis @ difference) / (axis @ axis)


def centred(positive, negative):
    """All rows, each around the mean of its side."""
    return torch.cat([positive - positive.mean(0), negative - negative.mean(0)]).numpy()


@pytest.mark.filterwarnings("ignore:Only one sample available")
@pytest.mark.parametrize("shrinkage", [0.0, 1e-3, 0.3, 1])
@pytest.mark.parametrize(("counts", "width"), SHAPES)
def test_a_fixed_shrinkage_equals_scikit_learn(counts, width, shrinkage):
    if shrinkage == 0 and width > 8:
        return  # no inverse, see below
    p, n, _ = planted(0, counts, width=width)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None)
    model.fit(torch.cat([p.values, n.values]).numpy(), [1] * len(p) + [0] * len(n))
    expected = scaled(model.coef_[0], p.values, n.values)
    torch.testing.assert_close(Lda(shrinkage).of(p, n), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("counts", "width"), SHAPES)
def test_oas_equals_scikit_learn_on_centred_sides(counts, width):
    p, n, _ = planted(1, counts, width=width)
    rest = centred(p.values, n.values)
    estimate = OAS(assume_centered=True).fit(rest)
    state = Scatter.zero(width).plus(p, n)
    assert oas(state.within, int(state.count)) == pytest.approx(estimate.shrinkage_, rel=1e-9)
    axis = np.linalg.solve(estimate.covariance_, (p.values.mean(0) - n.values.mean(0)).numpy())
    found, known = Lda().outcome(state)
    torch.testing.assert_close(found, scaled(axis, p.values, n.values), rtol=1e-7, atol=1e-8)
    assert known == {"oas": pytest.approx(estimate.shrinkage_, rel=1e-9)}


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_covariances_from_sums_are_those_of_the_rows(far):
    p, n, _ = planted(2, (30, 20))
    p, n = rows(p.values + far), rows(n.values + far)
    state = Scatter.zero(8).plus(p, n)
    everything = torch.cat([p.values, n.values]).numpy()
    rest = centred(p.values, n.values)
    for found, expected in ((state.pooled, np.cov(everything.T, bias=True)), (state.within, rest.T @ rest / 50)):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-12 + 1e-15 * far**2)


def test_the_spread_within_the_sides_is_divided_out():
    """The best linear classifier of two Gaussians, where the mean difference is another direction."""
    random = torch.Generator().manual_seed(0)
    shape = torch.randn(6, 6, generator=random, dtype=torch.float64)
    covariance = shape @ shape.T + 0.1 * torch.eye(6)
    difference = torch.randn(6, generator=random, dtype=torch.float64)
    root = torch.linalg.cholesky(covariance)
    p, n = (torch.randn(20_000, 6, generator=random, dtype=torch.float64) @ root.T for _ in range(2))
    best = torch.linalg.solve(covariance, difference)
    for shrinkage in (0.0, "oas"):
        found = Lda(shrinkage).of(rows(p + difference), rows(n))
        assert float(torch.cosine_similarity(found, best, dim=0)) > 0.99
    assert float(torch.cosine_similarity(difference, best, dim=0)) < 0.9


def test_full_shrinkage_is_the_mean_difference():
    p, n, _ = planted(3, (7, 5), width=20)
    torch.testing.assert_close(Lda(1).of(p, n), p.values.mean(0) - n.values.mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shrinkage", "shown"), [(0, "0"), (0.0, "0"), (1e-18, "1e-18")])
@pytest.mark.parametrize(("counts", "width"), [((5, 4), 8), ((30, 30), 8)])
def test_a_singular_covariance_is_one_sentence(shrinkage, shown, counts, width):
    p, n, _ = planted(4, counts, width=width)
    rank = sum(counts) - 2
    if rank >= width:  # enough texts, but one direction in which none differ
        p.values[:, 0] = n.values[:, 0] = 1.0
        rank = width - 1
    with pytest.raises(sf.DataError) as caught:
        Lda(shrinkage).of(p, n)
    assert str(caught.value) == (
        f"The covariance within the sides is singular with shrinkage={shown}: {counts[0]} positive and {counts[1]} "
        f"negative texts give it rank {rank} of {width}; use shrinkage='oas' or a larger one, or pass more texts."
    )
    assert Lda(0.01).of(p, n).isfinite().all() and Lda().of(p, n).isfinite().all()


def test_the_shrinkage_that_is_just_large_enough_is_taken_and_equals_the_formula():
    """`a tr(S)/d`, the least eigenvalue of a singular covariance once shrunk, against the rounding of the sums."""
    p, n, _ = planted(4, (5, 4), width=8)
    rest, everything = centred(p.values, n.values), torch.cat([p.values, n.values])
    covariance = rest.T @ rest / 9
    rounding = 8 * np.finfo(np.float64).eps * float(everything.square().sum()) / 9
    just = rounding / (np.trace(covariance) / 8)
    for amount in (just / 7, just / 2):
        with pytest.raises(sf.DataError, match="singular with shrinkage"):
            Lda(amount).of(p, n)
    for amount in (2 * just, 7 * just):
        Lda(amount).of(p, n)
    amount = 1e-4  # far enough from rounding to compare
    shrunk = shrunk_covariance(covariance, amount)
    axis = np.linalg.solve(shrunk, (p.values.mean(0) - n.values.mean(0)).numpy())
    torch.testing.assert_close(Lda(amount).of(p, n), scaled(axis, p.values, n.values), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(shrink(torch.from_numpy(covariance), amount).numpy(), shrunk, rtol=1e-12)


@pytest.mark.parametrize(("count", "width"), [(30, 8), (9, 8), (5, 40)])
def test_oas_is_the_formula_written_out(count, width):
    """Chen et al. 2010, equation 23, without its terms in 2/d."""
    s = np.cov(np.random.default_rng(0).normal(size=(count, width)).T, bias=True)
    above = np.trace(s @ s) + np.trace(s) ** 2
    below = (count + 1) * (np.trace(s @ s) - np.trace(s) ** 2 / width)
    assert oas(torch.from_numpy(s), count) == pytest.approx(min(1.0, above / below), rel=1e-12)
    assert oas(torch.eye(width, dtype=torch.float64), count) == 1.0


def test_no_spread_within_the_sides_is_one_sentence(tiny):
    for shrinkage in ("oas", 0.0, 1.0):
        with pytest.raises(sf.DataError) as caught:
            sf.lda(tiny, words(), ["a b"] * 3, ["c d"], 1, shrinkage=shrinkage, progress=False)
        assert str(caught.value) == (
            "At resid_post[1]: lda divides by the variance within the sides, which is zero for 3 positive and 1 "
            "negative texts; pass more texts that differ, or use sf.mean_difference, which one of each is enough for."
        )


def test_equals_the_formula_on_the_activations_of_a_model(tiny):
    positive, negative = TEXTS[:14], TEXTS[14:]
    read = sf.activations(tiny, words(), TEXTS, 1, progress=False)[sf.resid_post[1]].double()
    p, n = read[:14], read[14:]
    axis = np.linalg.solve(OAS(assume_centered=True).fit(centred(p, n)).covariance_, (p.mean(0) - n.mean(0)).numpy())
    for batch_size in ("auto", 1, 5):
        v = sf.lda(tiny, words(), positive, negative, 1, batch_size=batch_size, progress=False)
        torch.testing.assert_close(v[1].double(), scaled(axis, p, n), rtol=1e-4, atol=1e-5)


def test_pitfall_26_shrinkage_changes_the_vector_and_is_told(tiny):
    found = {
        s: sf.lda(tiny, words(), TEXTS[:14], TEXTS[14:], [0, 1], shrinkage=s, progress=False) for s in ("oas", 0.9)
    }
    assert not found["oas"].allclose(found[0.9])
    assert found[0.9].metadata["shrinkage"] == 0.9 and "oas" not in found[0.9].metadata
    assert found["oas"].metadata["shrinkage"] == "oas" and found["oas"].metadata["method"] == "lda"
    used = found["oas"].metadata["oas"]
    assert set(used) == {"resid_post[0]", "resid_post[1]"} and all(0 < each <= 1 for each in used.values())
    fixed = sf.lda(tiny, words(), TEXTS[:14], TEXTS[14:], 1, shrinkage=used["resid_post[1]"], progress=False)
    torch.testing.assert_close(fixed[1], found["oas"][1])


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, float("nan"), True, "OAS", None])
def test_a_shrinkage_that_is_none_is_one_sentence(tiny, shrinkage):
    with pytest.raises(sf.DataError) as caught:
        sf.lda(tiny, words(), ["a"], ["b"], 1, shrinkage=shrinkage, progress=False)
    assert (
        str(caught.value)
        == f"`shrinkage` must be a finite number >= 0 and <= 1, got {shrinkage!r}; 'oas' computes it from the data."
    )
