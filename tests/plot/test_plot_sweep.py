"""Sweeps as lines and as heat maps: every number at its strength, its layer and its vector."""

import numpy as np
import pytest
from words import words

import steerfn as sf
from steerfn.evaluate import estimate
from steerfn.evaluate._configs import Config

RNG = np.random.default_rng(0)
ALPHAS = (-2.0, 0.0, 1.0, 4.0)


def table(sites=(0, 1, 2), vectors=("v",), alphas=ALPHAS, prompts=("a", "b", "c", "d"), metric="share", **fields):
    """A sweep of made-up numbers; strength 0 is the same for all."""
    configs, rows, plain = [], [], RNG.uniform(size=len(prompts))
    for vector in vectors:
        for site in sites:
            for alpha in alphas:
                configs.append(Config(vector, (f"resid_post[{site}]",), float(alpha)))
                rows.append(plain if alpha == 0 else RNG.uniform(size=len(prompts)))
    return sf.evaluate.Sweep(tuple(configs), tuple(prompts), {metric: np.array(rows)}, **fields)


def lines(made):
    (axes,) = made.axes
    return {line.get_label(): line for line in axes.get_lines()}


def test_every_mean_is_at_its_strength_with_its_interval():
    swept = table(vectors=("v", "w"), sites=(3, 7))
    made = sf.plot.sweep(swept)
    found = lines(made)
    means = swept.mean()
    assert set(found) == {"unsteered", *(f"{v}, resid_post[{s}]" for v in "vw" for s in (3, 7))}
    bands = iter(made.axes[0].collections)
    for name, line in found.items():
        if name == "unsteered":
            continue
        vector, site = name.split(", ")
        drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert drawn == {a: pytest.approx(means[Config(vector, (site,), a)]) for a in ALPHAS}
        corners = {tuple(corner) for corner in next(bands).get_paths()[0].vertices}
        for i, config in enumerate(swept.configs):
            if (config.vector, config.sites) == (vector, (site,)):
                expected = estimate(swept.values["share"][i], resamples=1999)
                assert {(config.alpha, expected.low), (config.alpha, expected.high)} <= corners


def test_unsorted_strengths_are_drawn_in_order():
    swept = table(sites=(1,), alphas=(2.0, -1.0, 0.0))
    assert list(lines(sf.plot.sweep(swept))["resid_post[1]"].get_xdata()) == [-1, 0, 2]


def test_the_unsteered_model_is_marked_where_it_is_in_the_sweep():
    swept = table()
    line = lines(sf.plot.sweep(swept))["unsteered"]
    assert list(line.get_ydata()) == pytest.approx([swept.values["share"][1].mean()] * 2)
    assert "unsteered" not in lines(sf.plot.sweep(table(alphas=(-1, 1))))
    other = table()  # of an operator that does something at strength 0
    other.values["share"][1] += 0.5
    assert "unsteered" not in lines(sf.plot.sweep(other))


def test_the_same_prompt_counts_once():
    swept = table(sites=(1,), prompts=("a", "a", "b"))
    row = swept.values["share"][0]
    expected = ((row[0] + row[1]) / 2 + row[2]) / 2
    assert lines(sf.plot.sweep(swept))["resid_post[1]"].get_ydata()[0] == pytest.approx(expected)
    assert sf.plot.sweep(swept).get_suptitle().startswith("share: mean over 2 prompts")


def test_pitfall_54_survivors_are_gaps_and_others_are_compared_on_common_prompts():
    swept = table(sites=(1,), prompts=[*"abcdefgh"])
    swept.values["share"][0, 2:] = np.nan
    swept.values["share"][2, 5] = np.nan
    made = sf.plot.sweep(swept)
    drawn = lines(made)["resid_post[1]"].get_ydata()
    common = [i for i in range(8) if i != 5]
    expected = swept.values["share"][:, common].mean(1)
    assert np.isnan(drawn[0]) and drawn[1:] == pytest.approx(expected[1:])
    title = " ".join(made.get_suptitle().split())
    assert "7 of 8 prompts (others have no number somewhere)" in title and title.endswith("7 of 32 numbers missing")
    assert lines(made)["unsteered"].get_ydata()[0] == pytest.approx(expected[1])
    map_ = sf.plot.heat_map(swept)
    values = np.asarray(map_.axes[0].collections[0].get_array().filled(np.nan)).ravel()
    assert np.isnan(values[0]) and values[1:] == pytest.approx(expected[1:])
    said = " ".join(map_.get_suptitle().split())
    assert "7 of 8 prompts, which all cells share" in said and "grey: too few texts with a number" in said


def test_vectors_whose_names_begin_alike_are_lines_of_their_own():
    names = [f"a vector with a long name that ends in {i}" for i in range(3)]
    swept = table(sites=(1,), vectors=names)
    drawn = lines(sf.plot.sweep(swept))
    assert len(drawn) == 4  # and the unsteered model
    for name, line in zip(names, list(drawn.values())[1:], strict=True):
        mine = [swept.values["share"][c].mean() for c, each in enumerate(swept.configs) if each.vector == name]
        assert line.get_ydata() == pytest.approx(mine)


def test_one_prompt_has_no_bands():
    made = sf.plot.sweep(table(sites=(1,), prompts=("a",)))
    assert made.get_suptitle() == "share: mean over 1 prompt"


@pytest.mark.parametrize(
    ("metric", "fields", "label"),
    [
        ("share", {}, "share (probability)"),
        ("propensity", {}, "propensity (log-odds, nats)"),
        ("length", {"texts": ()}, "length (words)"),
        ("sentiment", {"texts": ()}, "sentiment (-1 to 1)"),
        ("share", {"texts": ()}, "share"),  # a metric of somebody's own
        ("my_$metric", {"texts": ()}, "my_$metric"),
    ],
)
def test_axes_say_what_and_in_which_unit(metric, fields, label):
    swept = table(metric=metric, **fields)
    assert sf.plot.sweep(swept).axes[0].get_ylabel() == label
    assert sf.plot.sweep(swept).axes[0].get_xlabel() == "Strength alpha"
    assert sf.plot.heat_map(swept).axes[-1].get_ylabel() == label


def test_more_lines_than_can_be_told_apart_are_refused():
    assert len(lines(sf.plot.sweep(table(sites=range(8))))) == 9
    message = (
        "This sweep has 9 lines (1 vector x 9 choices of sites), and more than 8 cannot be told apart; use sf.plot."
    )
    with pytest.raises(sf.DataError) as caught:
        sf.plot.sweep(table(sites=range(9)))
    assert message in str(caught.value)


def test_lines_differ_in_colour_and_marker():
    drawn = [line for name, line in lines(sf.plot.sweep(table(sites=range(8)))).items() if name != "unsteered"]
    assert len({line.get_color() for line in drawn}) == len({line.get_marker() for line in drawn}) == 8


def test_pitfall_27_every_cell_is_at_its_layer_and_strength():
    swept = table(sites=(11, 2, 7), vectors=("v", "w"), alphas=(3.0, 0.0, -1.0))
    made = sf.plot.heat_map(swept, width=6.0)
    means = swept.mean()
    for axes, vector in zip(made.axes, ("v", "w"), strict=False):
        assert axes.get_title(loc="left") == vector
        layers = [t.get_text() for t in axes.get_yticklabels()]
        assert layers == ["2", "7", "11"] and axes.get_ylim()[0] < axes.get_ylim()[1]  # deeper is higher
        values = np.asarray(axes.collections[0].get_array()).reshape(3, 3)
        for row, layer in enumerate((2, 7, 11)):
            for column, alpha in enumerate((-1.0, 0.0, 3.0)):
                expected = means[Config(vector, (f"resid_post[{layer}]",), alpha)]
                assert values[row, column] == pytest.approx(expected)
                (cell,) = [t for t in axes.texts if t.get_position() == (column, row)]
                assert float(cell.get_text()) == pytest.approx(expected, rel=0.006)
    assert [t.get_text() for t in made.axes[1].get_xticklabels()] == ["-1", "0", "3"]


def test_colours_diverge_around_the_unsteered_model():
    swept = table()
    made = sf.plot.heat_map(swept)
    mesh = made.axes[0].collections[0]
    base = swept.values["share"][1].mean()
    assert (mesh.norm.vmin + mesh.norm.vmax) / 2 == pytest.approx(base)
    wide = max(abs(value - base) for value in swept.mean().values())
    assert mesh.norm.vmax - base == pytest.approx(wide)
    assert made.get_suptitle() == f"share: mean over 4 prompts; white: unsteered, {base:.3g}"
    without = table(alphas=(-1, 1))
    values = list(without.mean().values())
    title = sf.plot.heat_map(without).get_suptitle()
    assert title.endswith(f"white: the middle of the values, {(min(values) + max(values)) / 2:.3g}")


def test_numbers_are_written_where_they_fit():
    many = table(sites=range(10), alphas=range(-20, 21))
    assert not sf.plot.heat_map(many).axes[0].texts
    assert len(sf.plot.heat_map(many, width=24.0).axes[0].texts) == 410


def test_sites_of_several_kinds_are_named():
    configs = [Config("v", sites, 1.0) for sites in (("attn_out[1]",), ("resid_post[0]",), ("resid_post[0]", "x"))]
    swept = sf.evaluate.Sweep(tuple(configs), ("a",), {"m": np.array([[1.0], [2.0], [3.0]])})
    axes = sf.plot.heat_map(swept).axes[0]
    assert axes.get_ylabel() == "Site"
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert set(labels[:2]) == {"resid_post[0]", "2 sites"} and labels[2] == "attn_out[1]"


def test_all_numbers_the_same_is_no_division_by_zero():
    swept = table()
    swept.values["share"][:] = 0.5
    assert set(np.asarray(sf.plot.heat_map(swept).axes[0].collections[0].get_array()).ravel()) == {0.5}
    sf.plot.sweep(swept)


@pytest.mark.parametrize("plot", [sf.plot.sweep, sf.plot.heat_map])
def test_errors_by_their_text(plot):
    name = plot.__name__
    with pytest.raises(sf.SteerError, match=rf"plot.{name} takes a Sweep, not a list; make one with sf.sweep\("):
        plot([])
    with pytest.raises(sf.DataError, match="This sweep has no metric 'bleu'; it has 'share'."):
        plot(table(), "bleu")
    empty = table()
    empty.values["share"][:] = np.nan
    with pytest.raises(sf.DataError, match="The metric 'share' has no finite number in any configuration, so there is"):
        plot(empty)


def test_more_vectors_than_panels_are_refused():
    with pytest.raises(sf.DataError, match="This sweep has 7 vectors, more than the 6 panels of a figure; draw fewer."):
        sf.plot.heat_map(table(vectors="abcdefg"))


def test_a_real_sweep_is_drawn(tiny):
    v = sf.SteeringVector({sf.resid_post[i]: sf.random_vector(like=_ones(tiny), seed=i)[0] for i in range(3)})
    swept = sf.sweep(
        tiny, words(), ["a b", "c"], v, [-1, 0, 2], sites=range(3), continuations=[" a", " b"], progress=False
    )
    made = sf.plot.heat_map(swept, "mass")
    values = np.asarray(made.axes[0].collections[0].get_array()).reshape(3, 3)
    np.testing.assert_allclose(values.ravel(), list(swept.mean("mass").values()))


def _ones(model):
    import torch

    return sf.SteeringVector({sf.resid_post[0]: torch.ones(sf.layout(model).d_model)})
