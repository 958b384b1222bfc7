"""Two sides of texts along a direction and in their plane: against numpy, and the drawing against the numbers."""

import numpy as np
import pytest
import torch
from matplotlib.patches import StepPatch
from steering import vector
from words import words

import steerfn as sf
from steerfn.plot._separation import compare_sides

V = vector(sf.resid_post[1])
POSITIVE = ["a b c", "d e f g", "h i", "j k l m n", "b d", "c c a"]
NEGATIVE = ["o p", "q r s t", "u", "v w a"]


def sides(model, position="last"):
    found = [
        sf.activations(model, words(), texts, 1, position, progress=False)[sf.resid_post[1]].double()
        for texts in (POSITIVE, NEGATIVE)
    ]
    return found[0], found[1]


def test_numbers_are_those_of_numpy(tiny):
    positive, negative = sides(tiny)
    u = V[1].double() / V[1].double().norm()
    found = compare_sides(positive, negative, u, sf.resid_post[1])
    both = np.concatenate([positive, negative])
    np.testing.assert_allclose(np.concatenate(found.along), both @ u.numpy(), atol=1e-10)
    values, vectors = np.linalg.eigh(np.cov(both.T, bias=True))
    np.testing.assert_allclose(found.shares, values[::-1][:2] / values.sum(), atol=1e-10)
    centred = both - both.mean(0)
    drawn = np.concatenate(found.plane)
    for i in range(2):
        axis = vectors[:, -1 - i]
        expected = centred @ axis
        assert np.allclose(drawn[:, i], expected, atol=1e-8) or np.allclose(drawn[:, i], -expected, atol=1e-8)
        assert drawn[:6, i].mean() >= drawn[6:, i].mean()  # the sign is that of the sides
        assert abs(found.direction[i]) == pytest.approx(abs(float(axis @ u.numpy())), abs=1e-8)
    wins = np.mean([[float(p > n) for n in found.along[1]] for p in found.along[0]])
    assert found.auc == pytest.approx(wins)
    spread = np.sqrt((5 * found.along[0].var(ddof=1) + 3 * found.along[1].var(ddof=1)) / 8)
    assert found.cohens_d == pytest.approx((found.along[0].mean() - found.along[1].mean()) / spread)


def test_a_planted_direction_is_the_first_component_and_points_right():
    random = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(40, 16, generator=random, dtype=torch.float64)
    planted = torch.zeros(16, dtype=torch.float64)
    planted[3] = 1.0
    noise[:20] += planted
    found = compare_sides(noise[:20], noise[20:], planted, sf.resid_post[0])
    assert found.direction[0] > 0.99 and abs(found.direction[1]) < 0.1 and found.auc == 1.0
    assert compare_sides(noise[:20], noise[20:], None, sf.resid_post[0]).direction[0] > 0.98
    backwards = compare_sides(noise[20:], noise[:20], planted, sf.resid_post[0])
    assert backwards.auc == 0.0 and backwards.direction[0] < -0.99


def test_without_a_vector_the_direction_is_the_texts_own_and_the_title_says_so(tiny):
    positive, negative = sides(tiny)
    gap = positive.mean(0) - negative.mean(0)
    own = compare_sides(positive, negative, None, sf.resid_post[1])
    np.testing.assert_allclose(own.along[0], (positive @ (gap / gap.norm())).numpy(), atol=1e-10)
    options = {"site": 1, "progress": False}
    assert "the direction was made of these texts" in _title(
        sf.plot.separation(tiny, words(), POSITIVE, NEGATIVE, **options)
    )
    assert "made of these" not in _title(sf.plot.separation(tiny, words(), POSITIVE, NEGATIVE, V, **options))


def _title(made):
    return " ".join(made.get_suptitle().split())


@pytest.mark.parametrize("width", [8.0, 4.0])
def test_what_is_drawn_is_what_was_measured(tiny, width):
    made = sf.plot.separation(tiny, words(), POSITIVE, NEGATIVE, V, progress=False, width=width)
    positive, negative = sides(tiny)
    found = compare_sides(positive, negative, V[1].double() / V[1].double().norm(), sf.resid_post[1])
    along, plane = made.axes
    filled = [p for p in along.patches if isinstance(p, StepPatch) and p.get_fill()]
    assert len(filled) == 2
    for patch, values in zip(filled, found.along, strict=True):
        counts, edges, _ = patch.get_data()
        inside = np.clip(values, edges[0], edges[-1])  # the outermost bounds are values, to the rounding of a pass
        assert counts.tolist() == np.histogram(inside, edges)[0].tolist() and counts.sum() == len(values)
        np.testing.assert_allclose(inside, values, atol=1e-4)
    rugs = [line for line in along.get_lines() if line.get_marker() == "|"]
    for line, values in zip(rugs, found.along, strict=True):
        np.testing.assert_allclose(np.sort(line.get_xdata()), np.sort(values), atol=1e-4)
    for points, values in zip(plane.collections, found.plane, strict=True):
        np.testing.assert_allclose(points.get_offsets(), values, atol=1e-4)
    (arrow,) = [t for t in plane.texts if t.arrow_patch is not None]
    length = plane.patches[0].get_radius()
    np.testing.assert_allclose(np.array(arrow.xy) / length, found.direction, atol=1e-4)
    assert f"AUC along the direction {found.auc:.3f}, d {found.cohens_d:.2f}" in _title(made)
    assert "6 positive, 4 negative texts" in _title(made)
    assert plane.get_xlabel() == f"Component 1 ({100 * found.shares[0]:.0f} % of the variance)"
    assert {t.get_text() for t in made.legends[0].get_texts()} > {"positive", "negative"}


def test_one_text_on_each_side(tiny):
    made = sf.plot.separation(tiny, words(), ["a b"], ["c d e"], V, progress=False)
    assert "d " not in _title(made).partition("AUC")[2]
    same = compare_sides(torch.ones(2, 4).double(), torch.ones(3, 4).double(), None, sf.resid_post[0])
    assert same.auc == 0.5 and np.isfinite(same.shares).all()


def test_errors_by_their_text(tiny):
    cases = [
        (
            {"vector": None},
            "plot.separation needs a vector, or a site for the texts' own difference: pass vector=..., or site=12.",
        ),
        ({"vector": None, "site": [0, 1]}, "One site is needed, not 2 (resid_post[0], resid_post[1]); pass one."),
        ({"positive": []}, "positive is empty; pass at least one text."),
        ({"negative": [" "]}, "negative[0] is empty"),
        ({"vector": "x"}, "A plot of projections takes a SteeringVector, not a str;"),
        ({"site": 0}, "This vector has no direction at resid_post[0]"),
    ]
    for options, message in cases:
        given = {"positive": POSITIVE, "negative": NEGATIVE, "vector": V, "progress": False} | options
        with pytest.raises(sf.SteerError) as caught:
            sf.plot.separation(tiny, words(), **given)
        assert message in str(caught.value)
