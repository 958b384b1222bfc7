"""Comparisons and outcomes: every estimate on its line with its interval, and nothing called shown that is not."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_rgba

import steerfn as sf
from steerfn.evaluate import Difference, Estimate, estimate, paired
from steerfn.evaluate._pairs import analyse, mean_of, plan_pairs, random_like
from steerfn.metrics import Metric

RNG = np.random.default_rng(1)
PLAIN = RNG.normal(size=24)
VALUES = {
    "toxicity": {
        "unsteered": PLAIN,
        "v1": PLAIN + 0.1 * RNG.normal(size=24),
        "v2": PLAIN - 2 + 0.1 * RNG.normal(size=24),
        random_like("v1"): PLAIN + RNG.normal(size=(5, 24)),
        random_like("v2"): PLAIN + RNG.normal(size=(5, 24)),
    }
}
VALUES["le_$ngth$"] = {name: 10 * values for name, values in VALUES["toxicity"].items()}


def compared(values=VALUES):
    metrics = {name: Metric(name, len, unit="probability" if name == "toxicity" else "") for name in values}
    conditions = list(next(iter(values.values())))
    vectors = [name for name in conditions if name != "unsteered" and not name.startswith("random")]
    n = len(next(iter(values.values()))["unsteered"])
    options = {"level": 0.95, "seed": 0, "resamples": 199}
    means = {m: {c: mean_of(each, options) for c, each in of.items()} for m, of in values.items()}
    return sf.evaluate.VectorComparison(
        tuple(f"p{i}" for i in range(n)), (0,), tuple(vectors), {c: ("",) * n for c in conditions}, values, means,
        analyse(values, plan_pairs(vectors)), metrics, tuple(range(n)), np.zeros((1, n), int),
    )  # fmt: skip


def rows(axes):
    """What is drawn on each line: label, mean, interval, whether filled, and the note at the right."""
    labels = dict(zip(axes.get_yticks(), [t.get_text() for t in axes.get_yticklabels()], strict=True))
    notes = {t.get_position()[1]: t.get_text() for t in axes.texts}
    points = [line for line in axes.get_lines() if line.get_marker() not in ("None", "")]
    spans = {}
    for line in axes.get_lines():
        if line.get_marker() in ("None", "") and len(set(line.get_ydata())) == 1:
            spans[line.get_ydata()[0]] = tuple(line.get_xdata())
    return {
        labels[place]: (
            point.get_xdata()[0],
            spans.get(place),
            to_rgba(point.get_markerfacecolor()) != to_rgba("white"),
            notes.get(place, ""),
        )
        for point in points
        for place in point.get_ydata()
    }


def test_every_difference_is_on_its_line_and_filled_where_shown():
    result = compared()
    made = sf.plot.comparison(result)
    assert [axes.get_title(loc="left") for axes in made.axes] == ["toxicity", "le_$ngth$"]
    seen = set()
    for axes, metric in zip(made.axes, VALUES, strict=True):
        drawn = rows(axes)
        pairs = [pair for pair in result.pairs if pair.metric == metric]
        assert len(drawn) == len(pairs) == 5
        for pair in pairs:
            control = "random" if pair.against == "random" else pair.control
            mean, span, filled, note = drawn[f"{pair.treatment} − {control}"]
            found = pair.difference.estimate
            assert (mean, span, filled) == (found.mean, (found.low, found.high), pair.significant)
            assert note.endswith("n = 24") and note.startswith("p ")
            seen.add(pair.significant)
    assert seen == {True, False}
    assert [axes.get_xlabel() for axes in made.axes] == ["Difference (probability)", "Difference"]
    assert "square: from random vectors, where p is that of an effect" in " ".join(made.get_suptitle().split())


def test_the_first_line_is_on_top_and_zero_is_marked():
    axes = sf.plot.comparison(compared()).axes[0]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    low, high = axes.get_xlim()
    assert low < 0 < high
    assert any(list(line.get_xdata()) == [0, 0] and line.get_linestyle() != "-" for line in axes.get_lines())


def test_what_too_few_prompts_cannot_carry_is_open_and_says_so():
    few = {"toxicity": {name: values[..., :4] for name, values in VALUES["toxicity"].items()}}
    drawn = rows(sf.plot.comparison(compared(few)).axes[0])
    assert not any(filled for _, _, filled, _ in drawn.values())
    assert {note for *_, note in drawn.values()} == {"too few prompts, n = 4"}


def test_a_few_random_vectors_are_open_and_says_so():
    lone = {"toxicity": {**VALUES["toxicity"], random_like("v2"): PLAIN}}
    _, _, filled, note = rows(sf.plot.comparison(compared(lone)).axes[0])["v2 − random"]
    assert not filled and note == "too few random vectors, n = 24"


def test_a_comparison_without_numbers_has_no_marker():
    gone = {"toxicity": {**VALUES["toxicity"], "v1": np.full(24, np.nan)}}
    made = sf.plot.comparison(compared(gone))
    drawn = rows(made.axes[0])
    assert math.isnan(drawn["v1 − unsteered"][0]) if "v1 − unsteered" in drawn else True
    assert "no numbers, n = 0" in [t.get_text() for t in made.axes[0].texts]
    labels = [t.get_text() for t in made.axes[0].get_yticklabels()]
    assert labels[0] == "v1 − unsteered" and labels[0] not in drawn


def test_names_that_begin_alike_stay_apart():
    names = [f"a vector whose name goes on and ends in {i}" for i in range(3)]
    of = {"unsteered": PLAIN} | {name: PLAIN - 1 for name in names}
    of |= {random_like(name): PLAIN + RNG.normal(size=(5, 24)) for name in names}
    for width in (3.0, 6.5):
        labels = [t.get_text() for t in sf.plot.comparison(compared({"m": of}), width=width).axes[0].get_yticklabels()]
        assert len(set(labels)) == len(labels) == 9


def test_long_names_keep_what_they_are_compared_with():
    name = "a vector whose name goes on and on and on"
    values = {"toxicity": {"unsteered": PLAIN, name: PLAIN - 1, random_like(name): PLAIN + RNG.normal(size=24)}}
    labels = [t.get_text() for t in sf.plot.comparison(compared(values), width=4.0).axes[0].get_yticklabels()]
    assert [label.split("… − ") for label in labels] == [["a vecto", "unsteered"], ["a vector w", "random"]]


ITEMS = RNG.normal(size=(3, 30))


def outcome(**changes):
    steered, plain, random = ITEMS[0] + 1, ITEMS[0] + 0.05 * ITEMS[1], ITEMS[2]
    fields = {
        "figures": {"p_match": estimate(steered), "mass": estimate(random)},
        "baseline": {"p_match": estimate(plain), "mass": estimate(random)},
        "controls": {"random": {"p_match": estimate(random)}},
        "effects": {"unsteered": {"p_match": paired(steered, plain), "mass": paired(random, random)}},
    }
    return sf.evaluate.Outcome("caa", "Rimsky et al. 2024", **(fields | changes))


def test_every_figure_has_a_panel_and_every_condition_a_line():
    found = outcome()
    made = sf.plot.outcome(found)
    assert [axes.get_title(loc="left") for axes in made.axes] == ["p_match", "mass"]
    for axes, name in zip(made.axes, ("p_match", "mass"), strict=True):
        drawn = rows(axes)
        for condition, of in (("steered", found.figures), ("unsteered", found.baseline), *found.controls.items()):
            if name in of:
                assert drawn[condition][:2] == (of[name].mean, (of[name].low, of[name].high))
                assert f"n = {of[name].n}" in drawn[condition][3]
        assert set(drawn) == {"steered", "unsteered"} | ({"random"} if name == "p_match" else set())
    assert made.get_suptitle().splitlines()[0] == "caa (Rimsky et al. 2024)"


def test_the_steered_marker_is_open_where_no_difference_is_shown():
    found = outcome()
    assert found.is_shown("p_match") and not found.is_shown("mass")
    first, second = (rows(axes) for axes in sf.plot.outcome(found).axes)
    assert first["steered"][2] and first["unsteered"][2] and not second["steered"][2]
    assert ", p " in first["steered"][3] and ", p " not in first["unsteered"][3]
    alone = outcome(effects={})
    made = sf.plot.outcome(alone)
    assert all(filled for axes in made.axes for _, _, filled, _ in rows(axes).values())
    assert "Open" in sf.plot.outcome(found).get_suptitle() and "Open" not in made.get_suptitle()


def test_an_estimate_without_interval_is_a_point():
    found = outcome(figures={"p_match": Estimate(0.5, math.nan, math.nan, 1)}, effects={})
    assert rows(sf.plot.outcome(found).axes[0])["steered"][:2] == (0.5, None)


def test_an_effect_of_infinite_size_is_drawn():
    same = Difference(Estimate(1.0, 1.0, 1.0, 30), 0.001, math.inf, 30)
    assert rows(sf.plot.outcome(outcome(effects={"unsteered": {"p_match": same}})).axes[0])["steered"][2]


def test_errors_by_their_text():
    empty = outcome(figures={}, baseline={}, controls={}, effects={})
    nothing = sf.evaluate.VectorComparison(
        ("a",), (0,), ("v",), {"v": ("",)}, {}, {}, (), {}, (0,), np.zeros((1, 1), int)
    )
    for call, message in (
        (lambda: sf.plot.comparison(outcome()), "plot.comparison takes a VectorComparison, not a Outcome; make one"),
        (lambda: sf.plot.comparison(nothing), "This comparison has no pairs, so there is nothing to draw."),
        (lambda: sf.plot.outcome(compared()), "plot.outcome takes an Outcome, not a VectorComparison; make one with"),
        (lambda: sf.plot.outcome(empty), "This outcome has no figures, so there is nothing to draw."),
    ):
        with pytest.raises(sf.SteerError) as caught:
            call()
        assert message in str(caught.value)
