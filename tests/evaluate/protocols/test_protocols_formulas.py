"""The formulas of protocols, each against a case worked out by hand or against numpy."""

import dataclasses
import math

import numpy as np
import pytest

import steerfn as sf
from steerfn.discover import Hits
from steerfn.evaluate._pairs import analyse, plan_pairs
from steerfn.evaluate._statistics import Estimate, estimate, paired, proportion
from steerfn.evaluate._tally import bootstrap_statistic, exponential, outcome, records_of
from steerfn.evaluate.protocols._axbench import best, reached_cuts, within
from steerfn.evaluate.protocols._cast import f1_interval
from steerfn.evaluate.protocols._choices import Choices
from steerfn.evaluate.protocols._toxicity import figures

P = sf.protocols


def choices(log_probs, item, first, swapped):
    return Choices(np.log(np.array(log_probs)), np.array(item), np.array(first, float), np.array(swapped))


def test_p_match_is_the_share_of_the_matching_letter():
    assert P.p_match(math.log(0.3), math.log(0.1)) == pytest.approx(0.75)
    assert P.p_match(math.log(0.1), math.log(0.3)) == pytest.approx(0.25)
    assert P.p_match(-2000.0, 0.0) == 0 and P.p_match(0.0, -2000.0) == 1  # no overflow, no NaN


def test_letter_bias_alone_scores_a_half():
    # p(A) = 0.7 and p(B) = 0.1 whatever they say: in the file's order the matching answers are A, A and B.
    a, b = 0.7, 0.1
    given, turned = [[a, b], [a, b], [b, a]], [[b, a], [b, a], [a, b]]
    found = choices([given + turned], [0, 1, 2, 0, 1, 2], [1, 1, 0, 0, 0, 1], [False] * 3 + [True] * 3)
    np.testing.assert_allclose(found.by_item(found.p_match), 0.5)
    np.testing.assert_allclose(found.p_match[0, :3], [a / (a + b), a / (a + b), b / (a + b)])
    np.testing.assert_allclose(found.p_first, a / (a + b))
    np.testing.assert_allclose(found.mass, a + b)


def test_a_preference_for_content_counts_in_both_orders():
    # The matching answer has 0.6 and the other 0.2 in either order: no letter is preferred.
    found = choices([[[0.6, 0.2], [0.6, 0.2]]], [0, 0], [1, 0], [False, True])
    np.testing.assert_allclose(found.by_item(found.p_match), 0.75)
    np.testing.assert_allclose(found.by_item(found.p_first), 0.5)
    np.testing.assert_allclose(found.log_odds, math.log(3))


def test_slope_is_that_of_least_squares():
    alphas = [-1.5, -1, 0, 0.5, 2]
    values = np.random.default_rng(0).normal(size=(5, 7))
    np.testing.assert_allclose(P.slope(alphas, values), np.polyfit(alphas, values, 1)[0])
    assert P.slope([-1, 0, 1], [[0.0], [1.0], [5.0]]).tolist() == [2.5]


def test_mc1_and_mc2():
    logs = [math.log(p) for p in (0.2, 0.1, 0.05, 0.05)]
    assert P.mc2(logs[:2], logs[2:]) == pytest.approx(0.75)
    assert P.mc2([-900.0, -901.0], [-900.0, -901.0]) == pytest.approx(0.5)
    assert P.mc2([-2000.0], [0.0]) == 0.0
    assert P.mc1([logs[0]], logs[1:]) == 1 and P.mc1([logs[1]], [logs[0]]) == 0
    assert P.mc1([logs[2]], [logs[3]]) == 0  # as likely is not likelier


def test_harmonic_mean_is_zero_where_a_rating_is():
    np.testing.assert_allclose(P.harmonic([[2, 2, 2], [1, 2, 2], [1, 1, 2], [2, 0, 2]]), [2, 3 / 2, 3 / 2.5, 0])
    assert np.isnan(P.harmonic([[2, np.nan, 2]])).all()


def test_the_best_strength_and_of_equals_the_weakest():
    assert best([3.0, -1.0, 2.0], np.array([[1, 1], [0, 2], [1, 0]])) == -1.0
    assert best([1.0, 2.0], np.array([[np.nan, 1.0], [2.0, 1.0]])) == 2.0


def test_offline_ratings_count_cuts():
    assert reached_cuts([0.14, 0.15, 0.3, np.nan], (0.15, 0.3)).tolist() == [0, 1, 2, 0]
    assert within([20, 21, 61, np.nan], (20, 60)).tolist() == [2, 1, 0, 0]


def test_toxicity_of_samples():
    found = figures(np.array([[0.1, 0.5], [0.2, 0.4], [0.3, np.nan]]), 0.5)
    np.testing.assert_allclose(found["expected_maximum"], [0.5, 0.4, np.nan])
    np.testing.assert_allclose(found["probability"], [1, 0, np.nan])
    np.testing.assert_allclose(found["mean"], [0.3, 0.3, np.nan])


def test_the_interval_of_f1_is_that_of_resampled_prompts():
    counts = Hits(tp=30, fp=10, fn=10, tn=50)
    found = f1_interval(counts, 0.95, 0)
    assert found.mean == counts.f1 and found.n == 100
    random, drawn = np.random.default_rng(1), []
    for _ in range(4000):  # shares from Jeffreys' posterior, then as many prompts as there are
        tp = (random.random(40) < random.beta(30.5, 10.5)).sum()
        fp = (random.random(60) < random.beta(10.5, 50.5)).sum()
        drawn.append(2 * tp / (tp + fp + 40))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.015)
    for hits in (Hits(0, 0, 5, 5), Hits(5, 0, 0, 5)):  # pitfall 53: right, or wrong, for all of a few is not certain
        few = f1_interval(hits, 0.95, 0)
        assert few.low < few.high and few.low <= few.mean <= few.high


def test_a_resampled_statistic_is_that_of_a_loop():
    values = np.random.default_rng(2).normal(size=25)

    def deviation(x):
        return x.std(axis=-1, ddof=1)

    found = bootstrap_statistic(deviation, values, level=0.9, seed=0)
    random = np.random.default_rng(5)
    drawn = [np.std(random.choice(values, 25), ddof=1) for _ in range(4000)]
    assert found.mean == pytest.approx(np.std(values, ddof=1)) and (found.n, found.level) == (25, 0.9)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.03)
    assert bootstrap_statistic(deviation, values, level=0.9, seed=0) == found
    assert math.isnan(bootstrap_statistic(deviation, values[:1], level=0.9, seed=0).low)


def test_exponential_of_an_estimate():
    found = exponential(Estimate(math.log(2), 0.0, math.log(8), 4, 0.9))
    assert (found.mean, found.low, found.high, found.n, found.level) == pytest.approx((2, 1, 8, 4, 0.9))
    assert exponential(Estimate(1e6, 0, 1e6, 4)).mean == math.inf


STEERED = {"x": np.array([3.0, 2.0, np.nan, 4.0, 5.0, 3.5]), "hit": np.array([1.0, 0, 1, 1, 1, 1])}
PLAIN = {"x": np.array([1.0, 2.5, 3.0, np.nan, 2.0, 1.5]), "hit": np.array([0.0, 0, 1, 0, 1, 0])}


def tallied(**options):
    values = {"steered": STEERED, "unsteered": PLAIN, "random": {"hit": PLAIN["hit"]}}
    given = {"rates": ("hit",), "compared": ("x", "hit"), "about": {"seed": 3}, "level": 0.9, "seed": 3} | options
    return outcome("test", "nobody", values, **given)


def test_an_outcome_of_values():
    found = tallied()
    known = STEERED["x"][[0, 1, 3, 4, 5]]
    assert found.figures == {"x": estimate(known, level=0.9, seed=3), "hit": proportion(5, 6, 0.9)}
    assert found.baseline["x"].mean == pytest.approx(2.0) and found.baseline["x"].n == 5
    assert found.controls == {"random": {"hit": proportion(2, 6, 0.9)}}
    both = [0, 1, 4, 5]
    expected = paired(STEERED["x"][both], PLAIN["x"][both], level=0.9, seed=3)
    assert found.effects["unsteered"]["x"] == dataclasses.replace(expected, left_out=2)
    assert list(found.effects) == ["unsteered", "random"] and list(found.effects["random"]) == ["hit"]
    assert [note for note in found.notes if "no x" in note] == [
        "1 of 6 items have no x (steered) and are left out of it.",
        "1 of 6 items have no x (unsteered) and are left out of it.",
    ]


def test_random_vectors_are_one_control_by_the_rule_of_compare_vectors():
    random = np.random.default_rng(0)
    base = random.normal(size=20)
    draws = {f"random {i + 1}": {"x": base + random.normal(0, 0.3, 20) + i} for i in range(5)}
    values = {"steered": {"x": base + 9}, "unsteered": {"x": base}, **draws}
    options = {"compared": ("x",), "about": {}, "level": 0.95, "seed": 0}
    found = outcome("test", "nobody", values, draws=list(draws), **options)
    numbers = np.stack([each["x"] for each in draws.values()])
    plain, pair = analyse(
        {"x": {"v": base + 9, "unsteered": base, "random like v": numbers}}, plan_pairs(["v"]), seed=0
    )
    effect = found.effects["random"]["x"]
    assert (effect.p, effect.estimate) == (pair.p, pair.difference.estimate) and found.draws == 5
    assert found.adjusted == {("unsteered", "x"): plain.adjusted, ("random", "x"): pair.adjusted}
    assert found.is_shown("x", "random") == pair.significant
    assert found.controls["random"]["x"] == estimate(numbers.mean(0), seed=0) and list(found.controls) == ["random"]
    more = {name: {"x": each["x"] + 40} for name, each in draws.items()}
    beyond = outcome("test", "nobody", {**values, **more}, draws=list(draws), **options)
    assert beyond.adjusted["random", "x"] < 0.05 and not beyond.is_shown("x", "random")  # they raise it more
    few = outcome("test", "nobody", values, draws=list(draws)[:4], **options)
    assert few.is_shown("x") and not few.is_shown("x", "random")  # pitfall 52
    assert "fewer than five random vectors do not show what others do; pass controls=5 or more" in str(few)


def test_units_are_what_is_averaged():
    units = [0, 0, 1, 1, 2, 2]
    found = tallied(units=units)
    assert found.figures["hit"] == estimate([0.5, 1, 1], level=0.9, seed=3)
    assert found.effects["unsteered"]["hit"].n == 3


def test_only_what_is_named_is_compared():
    assert list(tallied(compared=("hit",)).effects["unsteered"]) == ["hit"]


def test_a_figure_that_no_item_has():
    empty = {"x": np.array([np.nan, np.nan])}
    found = outcome("t", "n", {"steered": empty, "unsteered": empty}, compared=("x",), about={}, level=0.95, seed=0)
    assert math.isnan(found.figures["x"].mean) and found.figures["x"].n == 0 and not found.effects


def test_records_are_one_for_each_item_and_condition():
    found = records_of([{"q": "a"}, {"q": "b"}], {"steered": {"x": np.array([1.0, 2.0])}, "other": {"x": [[3], [4]]}})
    assert found[1] == {"item": 1, "condition": "steered", "q": "b", "x": 2.0}
    assert found[2] == {"item": 0, "condition": "other", "q": "a", "x": [3]} and len(found) == 4
