"""Linear probe: against scikit-learn's logistic regression, as a direction and as a classifier."""

import pytest
import torch
from methods import planted, rows
from sklearn.linear_model import LogisticRegression
from words import WORDS, words

import steerfn as sf
from steerfn.discover._engine import _logistic
from steerfn.discover._engine._logistic import logistic
from steerfn.discover._linear_probe import LinearProbe

TEXTS = [" ".join(WORDS[(3 * i + j) % 26] for j in range(1 + i % 5)) for i in range(40)]


def fitted(positive, negative, l2):
    """scikit-learn's, to convergence."""
    x = torch.cat([positive, negative]).numpy()
    y = [1] * len(positive) + [0] * len(negative)
    return LogisticRegression(C=1 / l2, solver="newton-cg", tol=1e-12, max_iter=10_000).fit(x, y)


@pytest.mark.parametrize("l2", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize(("counts", "width"), [((60, 60), 8), ((70, 20), 8), ((6, 9), 40), ((1, 1), 40), ((3, 1), 2)])
def test_weights_and_intercept_equal_scikit_learn(counts, width, l2):
    positive, negative, _ = planted(0, counts, width=width, gap=1.5)
    w, b = logistic(positive.values, negative.values, l2)
    expected = fitted(positive.values, negative.values, l2)
    torch.testing.assert_close(w, torch.from_numpy(expected.coef_[0]), rtol=1e-5, atol=1e-7)
    assert b == pytest.approx(float(expected.intercept_[0]), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("l2", [1e-8, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shape", [(40, 30, 5), (5, 4, 60)])
def test_the_gradient_is_zero_at_any_scale(l2, scale, shape):
    """The optimum, by its definition: far from the origin, with duplicates, separable or not, in any units."""
    first, second, width = shape
    positive, negative, _ = planted(1, (first, second), width=width)
    positive, negative = (scale * (torch.cat([s.values, s.values[:2]]) + 1000.0) for s in (positive, negative))
    w, b = logistic(positive, negative, l2)
    w, b = w.clone().requires_grad_(), torch.tensor(b, dtype=torch.float64, requires_grad=True)
    fit = sum(
        torch.nn.functional.softplus(-y * (x @ w + b), threshold=700).sum() for x, y in ((positive, 1), (negative, -1))
    )
    (fit + l2 / 2 * (w @ w)).backward()
    centred = w.grad - b.grad * torch.cat([positive, negative]).mean(0)
    assert float(centred.norm()) <= 1e-6 * l2 * float(w.detach().norm()) and abs(float(b.grad)) < 1e-8 * first


@pytest.mark.parametrize("far", [10.0, 100.0, 1000.0])
def test_an_outlier_at_which_whole_newton_steps_go_too_far(far):
    positive = torch.tensor([[0.0], [far]], dtype=torch.float64)
    negative = torch.tensor([[1.0]] * 30 + [[-1.0]], dtype=torch.float64)
    w, b = logistic(positive, negative, 1e-3)
    expected = fitted(positive, negative, 1e-3)
    assert float(w) == pytest.approx(float(expected.coef_[0, 0]), rel=1e-5)
    assert b == pytest.approx(float(expected.intercept_[0]), rel=1e-5)


def test_the_vector_points_along_the_weights_with_the_length_of_the_data():
    positive, negative, _ = planted(2, (50, 30))
    v = LinearProbe(0.5).of(positive, negative)
    unit = torch.from_numpy(fitted(positive.values, negative.values, 0.5).coef_[0])
    unit = unit / unit.norm()
    expected = unit * (unit @ (positive.values.mean(0) - negative.values.mean(0)))
    torch.testing.assert_close(v, expected, rtol=1e-5, atol=1e-6)


def test_a_large_penalty_gives_the_mean_difference():
    positive, negative, _ = planted(3, (40, 25))
    difference = positive.values.mean(0) - negative.values.mean(0)
    torch.testing.assert_close(LinearProbe(1e9).of(positive, negative), difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("l2", [0.03, 1.0])
@pytest.mark.parametrize("position", ["last", "mean"])
def test_vector_and_bias_are_the_classifier_of_scikit_learn(tiny, l2, position):
    positive, negative, sites = TEXTS[:22], TEXTS[22:], [0, sf.attn_out[1], sf.resid_post[2]]
    options = {"position": position, "progress": False}
    v = sf.linear_probe(tiny, words(), positive, negative, sites, l2=l2, **options)
    read = sf.activations(tiny, words(), TEXTS, sites, **options)
    said = []
    for site in v.sites:
        high, low = read[site][:22].double(), read[site][22:].double()
        expected = fitted(high, low, l2).predict(read[site].double().numpy())
        one = v.select(site)
        h = read[site].unsqueeze(0)
        steered = sf.when(sf.probe(one, v.metadata["bias"][site.name]), sf.add(one))(h, sf.Info.of(h, site))
        assert (steered != h).any(-1)[0].tolist() == [bool(each) for each in expected]
        said.append(expected.mean())
    assert any(0 < share < 1 for share in said)
    assert v.metadata["method"] == "linear_probe" and v.metadata["l2"] == l2
    assert set(v.metadata["bias"]) == {site.name for site in v.sites}


def test_the_bias_is_kept_where_the_quality_is_measured(tiny):
    plain, judged = (
        sf.linear_probe(tiny, words(), TEXTS[:9], TEXTS[9:20], 1, progress=False, quality=quality)
        for quality in (False, True)
    )
    assert judged.metadata["bias"]["resid_post[1]"] == pytest.approx(plain.metadata["bias"]["resid_post[1]"], rel=1e-4)
    assert judged.metadata["l2"] == plain.metadata["l2"] == 1.0


def test_sides_that_are_the_same_have_the_odds_as_bias():
    state = LinearProbe().init(3)
    ones = torch.ones(4, 3)
    found, known = LinearProbe().outcome(LinearProbe().update(state, rows(ones), rows(ones[:2])))
    assert not found.any() and known["bias"] == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_pitfall_26_the_penalty_changes_the_vector(tiny):
    weak, strong = (
        sf.linear_probe(tiny, words(), TEXTS[:9], TEXTS[9:20], 1, l2=l2, progress=False) for l2 in (1e-3, 10)
    )
    assert not weak.allclose(strong) and strong.metadata["l2"] == 10


@pytest.mark.parametrize("l2", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_a_penalty_that_is_none_is_one_sentence(tiny, l2):
    with pytest.raises(sf.DataError) as caught:
        sf.linear_probe(tiny, words(), ["a"], ["b"], 1, l2=l2, progress=False)
    assert str(caught.value) == f"`l2` must be a finite number > 0, got {l2!r}; the penalty is l2/2 |w|^2."


def test_no_convergence_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setattr(_logistic, "STEPS", 2)
    with pytest.raises(sf.DataError) as caught:
        sf.linear_probe(tiny, words(), ["a", "b"], ["c"], 1, progress=False)
    assert str(caught.value) == (
        "At resid_post[1]: The linear probe did not converge with l2=1 on 2 positive and 1 negative texts; pass a "
        "larger l2."
    )
