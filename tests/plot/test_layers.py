"""The figure of a layer profile: what it draws is what the profile says, without a display."""

import pytest
import torch
from matplotlib.figure import Figure
from words import words

import steerfn as sf

POSITIVE = ["a b c", "d e f g", "h i", "j k l m n", "b d", "c c a", "x y z"]
NEGATIVE = ["o p", "q r s t", "u", "v w a", "t t", "s o u", "r"]


@pytest.fixture(scope="module")
def profile():
    from families import build

    sites = [sf.resid_post[:], sf.attn_out[:], sf.head_out[1, 2]]
    return sf.discover.layer_profile(build("llama"), words(), POSITIVE, NEGATIVE, sites=sites, progress=False)


def lines(axes):
    """What is drawn, by its label: (layers, values)."""
    found = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith(("_", "best"))}
    return {name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in found.items()}


def test_pitfall_27_every_point_is_at_its_layer(profile):
    upper, lower = sf.plot.layers(profile).axes
    for axes, name in ((upper, "auc"), (lower, "cohens_d")):
        drawn = lines(axes)
        assert set(drawn) == {"resid_post", "attn_out", "head_out"}
        points = {(kind, layer): value for kind, (xs, ys) in drawn.items() for layer, value in zip(xs, ys, strict=True)}
        assert points == {(site.kind, site.layer): getattr(each, name) for site, each in profile}


def test_axes_are_labelled_and_the_best_site_named(profile):
    made = sf.plot.layers(profile)
    upper, lower = made.axes
    assert isinstance(made, Figure) and made.get_size_inches().tolist() == [6.0, 4.0]
    assert lower.get_xlabel() == "Layer (block index, from 0)"
    assert upper.get_ylabel().startswith("Held-out AUC") and lower.get_ylabel() == "Cohen's d\n(pooled SD)"
    best = profile.best()
    name = f"best: {best}, AUC {dict(profile)[best].auc:.3f}"
    (ring,) = [line for line in upper.get_lines() if line.get_label() == name]
    assert ring.get_xydata().tolist() == [[best.layer, dict(profile)[best].auc]]
    assert upper.get_title(loc="left") == "mean difference: 7 positive, 7 negative texts, 5 folds"
    (legend,) = made.legends
    assert {t.get_text() for t in legend.get_texts()} == {"resid_post", "attn_out", "head_out", name}


def test_nothing_is_drawn_outside_the_axes_and_no_tick_beyond_certainty(profile):
    held = {name: {**each, "auc": 1.0} for name, each in profile.vectors.metadata["quality"].items()}
    for some in (profile, sf.discover.Profile(profile.vectors.with_metadata(quality=held))):
        upper = sf.plot.layers(some).axes[0]
        low, high = upper.get_ylim()
        assert all(low < each.auc < high for _, each in some) and low < 0.5 < high <= 1.05
        assert max(tick for tick in upper.get_yticks() if tick <= high) <= 1.0


def test_kinds_differ_in_colour_and_marker(profile):
    upper, _ = sf.plot.layers(profile).axes
    drawn = [line for line in upper.get_lines() if not line.get_label().startswith(("_", "best"))]
    assert len({line.get_color() for line in drawn}) == len({line.get_marker() for line in drawn}) == 3
    assert [line.get_linestyle() for line in drawn if line.get_label() == "head_out"] == ["None"]


def test_what_is_not_known_is_a_gap(profile):
    held = dict(profile.vectors.metadata["quality"])
    held["resid_post[1]"] = {**held["resid_post[1]"], "auc": None, "cohens_d": None}
    gap = sf.discover.Profile(profile.vectors.select(sf.resid_post[:]).with_metadata(quality=held))
    for axes in sf.plot.layers(gap).axes:
        ((_, values),) = lines(axes).values()
        assert values[1] != values[1] and values[0] == values[0]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_it_is_saved_without_a_display(profile, tmp_path, kind):
    path = tmp_path / f"layers.{kind}"
    sf.plot.layers(profile).savefig(path)
    assert path.stat().st_size > 5000


def test_errors_by_their_text(tiny):
    few = sf.discover.layer_profile(tiny, words(), ["a"], ["b"], progress=False)
    v = sf.SteeringVector({sf.resid_post[1]: torch.ones(4)})
    for value, message in (
        (few, "This profile has no held-out AUC, because there were too few texts to cross-validate;"),
        (v, "plot.layers takes a Profile, not a SteeringVector; make one with sf.discover.layer_profile("),
    ):
        with pytest.raises(sf.SteerError) as caught:
            sf.plot.layers(value)
        assert message in str(caught.value)
