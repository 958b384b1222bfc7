"""Pairs of conditions: what is compared, what is corrected, and what the sentences claim."""

import dataclasses
import math

import numpy as np
import pytest

from steerfn.evaluate import Difference, Estimate, among, estimate, holm, paired, ratio
from steerfn.evaluate._pairs import UNSTEERED, Pair, analyse, mean_of, planned
from steerfn.evaluate._sentences import sentence, sentences

RANDOM = "a random vector of the same length"


def scores(n=40, seed=0, **shifts):
    """By condition, n positive numbers that are larger by a shift."""
    random = np.random.default_rng(seed)
    base = random.uniform(1, 2, n)
    return {name: base + shift + random.normal(0, 0.1, n) for name, shift in shifts.items()}


def test_the_plan_has_both_controls_of_every_vector_and_every_pair():
    assert planned(["v1", "v2", "v3"]) == [
        ("v1", "unsteered", "unsteered"),
        ("v1", "random like v1", "random"),
        ("v2", "unsteered", "unsteered"),
        ("v2", "random like v2", "random"),
        ("v2", "v1", "vector"),
        ("v3", "unsteered", "unsteered"),
        ("v3", "random like v3", "random"),
        ("v3", "v1", "vector"),
        ("v3", "v2", "vector"),
    ]


def test_every_pair_is_the_paired_difference_and_all_are_corrected_together():
    values = {"a": scores(a=0, b=0.05, c=1), "k": scores(seed=1, a=0, b=0.5, c=0)}
    plan = [("b", "a", "vector"), ("c", "a", "unsteered"), ("c", "b", "vector")]
    found = analyse(values, plan, level=0.9, seed=5, resamples=999)
    assert [(p.metric, p.treatment, p.control, p.against) for p in found] == [
        (metric, *each) for metric in values for each in plan
    ]
    options = {"level": 0.9, "seed": 5, "resamples": 999}
    for pair in found:
        first, second = values[pair.metric][pair.treatment], values[pair.metric][pair.control]
        assert pair.difference == paired(first, second, **options)
        assert pair.percent == ratio(first, second, **options)
        assert (pair.n, pair.left_out, pair.family, pair.alpha) == (40, 0, 6, pytest.approx(0.1))
    assert [p.adjusted for p in found] == holm([p.difference.p for p in found])


def test_prompts_without_a_number_are_left_out_of_their_pair_and_counted():
    values = scores(a=0, b=0.5, c=1)
    values["b"][:3] = np.nan
    values["a"][2:5] = np.inf
    values["c"][:] = np.nan
    ba, ca = analyse({"m": values}, [("b", "a", "vector"), ("c", "a", "vector")], resamples=999)
    assert (ba.n, ba.left_out, ca.n, ca.left_out) == (35, 5, 0, 40)
    assert ba.difference == paired(values["b"][5:], values["a"][5:], resamples=999)
    assert ba.adjusted == ba.difference.p and ba.family == 1  # what could not be tested corrects nothing
    assert math.isnan(ca.adjusted) and ca.verdict == "no numbers" and not ca.significant
    assert "5 prompts without a number left out" in sentence(ba, {})
    assert sentence(ca, {}) == "Nothing can be said of m between a and c: 0 of 40 prompts have numbers under both."
    values["c"][7] = 1.0
    [ca] = analyse({"m": values}, [("c", "a", "unsteered")], resamples=999)
    assert sentence(ca, {}) == (
        "Nothing can be said of m between c and the unsteered model: 1 of 40 prompts has a number under both."
    )


def test_a_mean_is_over_the_prompts_that_have_a_number():
    options = {"level": 0.95, "seed": 0, "resamples": 999}
    assert mean_of(np.array([1, np.nan, 2, 4, np.inf]), options) == estimate([1, 2, 4], **options)
    nothing = mean_of(np.array([np.nan]), options)
    assert nothing.n == 0 and math.isnan(nothing.mean)


def test_a_condition_of_which_a_metric_says_nothing_is_not_compared():
    values = {"bleu": scores(v=0), "length": scores(v=0, unsteered=0)}
    [pair] = analyse(values, [("v", UNSTEERED, "unsteered")], resamples=99)
    assert pair.metric == "length"


@pytest.mark.parametrize(
    ("treatment", "control", "told"),
    [
        ([2.0, 3.0, 4.0, 5.0], [4.0, 5.0, 6.0, 7.0], True),
        ([-2.0, 3.0, 4.0, 5.0], [4.0, 5.0, 6.0, 7.0], False),  # a scale that does not begin at 0
        ([2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 0.0, 8.0], False),  # a mean that may be 0
        ([2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_percent_only_of_what_is_clearly_not_zero(treatment, control, told):
    values = {"m": {"v": np.array(treatment), UNSTEERED: np.array(control)}}
    [pair] = analyse(values, [("v", UNSTEERED, "unsteered")], resamples=99)
    assert (pair.percent is not None) == told
    values["m"]["w"] = np.array([9.0, np.nan, -1.0, 9.0])  # nor where the metric is negative under another condition
    assert analyse(values, [("v", UNSTEERED, "unsteered")], resamples=99)[0].percent is None


def test_against_random_vectors_the_larger_of_two_p_values_counts():
    """A vector that differs on every prompt from the mean of others, but no more than they from each other."""
    base = np.random.default_rng(0).normal(size=40)
    noise = np.random.default_rng(1).normal(0, 0.1, (6, 40))
    draws = base + np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None] + noise[:5]
    plan = [("v", "random like v", "random")]
    [near] = analyse({"m": {"v": base + 0.7 + noise[5], "random like v": draws}}, plan, resamples=999)
    assert near.difference == paired(base + 0.7 + noise[5], draws.mean(0), resamples=999)
    assert near.difference.p == 0.001 and near.difference.estimate.low > 0.5  # by prompts alone, no doubt
    assert near.among == pytest.approx(among((base + 0.7 + noise[5]).mean(), draws.mean(1)))
    assert near.adjusted == near.p == near.among > 0.3 and near.verdict == "not shown" and near.draws == 5
    [far] = analyse({"m": {"v": base + 5 + noise[5], "random like v": draws}}, plan, resamples=999)
    assert far.among < 0.01 and far.p == max(far.among, 0.001) and far.verdict == "higher"
    assert f"against {RANDOM} (95 % CI" in sentence(far, {}) and "n = 40, 5 random vectors, Holm" in sentence(far, {})
    told = far.to_dict()
    assert (told["p"], told["p_prompts"], told["p_among_random"]) == (far.p, 0.001, far.among)
    assert told["random_vectors"] == 5
    assert mean_of(draws, {"resamples": 99}) == estimate(draws.mean(0), resamples=99)


def test_random_vectors_that_agree_are_no_surer_than_the_prompts():
    """Counts do that: none under any of two random vectors, and twice in forty under the vector."""
    few = np.zeros(40)
    few[:2] = 1.0
    plan = [("v", "random like v", "random")]
    [pair] = analyse({"m": {"v": few, "random like v": np.zeros((2, 40))}}, plan, resamples=999)
    error = few.std(ddof=1) / np.sqrt(40)
    assert pair.among == pytest.approx(among(few.mean(), [0.0, 0.0], error)) and pair.among > 0.2
    most = np.ones(40)
    most[:4] = 0.0
    [pair] = analyse({"m": {"v": most, "random like v": np.zeros((5, 40))}}, plan, resamples=999)
    assert pair.verdict == "higher"


def test_one_random_vector_carries_nothing():
    values = {"v": scores(a=2)["a"], "random like v": scores(a=0)["a"][None], UNSTEERED: scores(a=0)["a"]}
    plain, [lone] = (
        analyse({"m": values}, planned(["v"]), resamples=999)[0],
        analyse({"m": values}, planned(["v"])[1:], resamples=999),
    )
    assert plain.family == 1 and plain.verdict == "higher"  # what cannot be tested corrects nothing
    assert lone.lone and lone.verdict == "one random vector" and not lone.significant and math.isnan(lone.adjusted)


def test_prompts_that_some_random_vectors_have_no_number_for():
    base, draws = np.arange(12.0), np.arange(12.0) + np.array([[0.5], [-0.5], [0.0]])
    draws[0, 3] = draws[1, 7] = np.nan
    draws[:, 5] = np.inf
    [pair] = analyse({"m": {"v": base + 4, "random like v": draws}}, [("v", "random like v", "random")], resamples=99)
    assert (pair.n, pair.left_out, pair.draws) == (11, 1, 3)
    assert pair.among == pytest.approx(among(0.0, [-3.5, -4.5, -4.0]))  # each over the prompts that it has
    draws[2] = np.nan
    [two] = analyse({"m": {"v": base + 4, "random like v": draws}}, [("v", "random like v", "random")], resamples=99)
    assert two.draws == 2 and two.verdict == "not shown"
    apart = np.full(12, np.nan)
    apart[3] = 1.0  # a vector with numbers where one of the two random vectors has none
    [none] = analyse({"m": {"v": apart, "random like v": draws}}, [("v", "random like v", "random")], resamples=99)
    assert (none.n, none.draws, none.verdict) == (1, 1, "no numbers")
    draws[1] = np.nan
    [one] = analyse({"m": {"v": base + 4, "random like v": draws}}, [("v", "random like v", "random")], resamples=99)
    assert one.lone and one.verdict == "one random vector"


def made(mean=0.3, low=0.1, high=0.5, p=0.001, n=40, against="vector", level=0.95, **changes):
    """A pair with these numbers, the only one of its family."""
    if against == "random":
        changes = {"draws": 5, "among": p, **changes}
    difference = Difference(Estimate(mean, low, high, n, level), p, 0.5, n)
    control = {"vector": "v1", "unsteered": UNSTEERED, "random": "random like v2"}[against]
    pair = Pair("toxicity", "v2", control, against, difference, None, 0, adjusted=p)
    return dataclasses.replace(pair, **changes)


def test_a_difference_is_shown_where_test_interval_and_prompts_agree():
    assert made().verdict == "higher" and made(-0.3, -0.5, -0.1).verdict == "lower"
    assert made(adjusted=0.06).verdict == "not shown"
    assert made(adjusted=0.05).verdict == "not shown"
    assert made(low=-0.01).verdict == "not shown"
    assert made(adjusted=0.06, level=0.9).verdict == "higher"
    assert made(n=5).verdict == "too few prompts"
    assert made(n=6).verdict == "higher"
    assert made(n=40, family=100, resamples=999).verdict == "too few resamples"
    assert made(n=40, family=100, resamples=1999).verdict == "higher"


@pytest.mark.parametrize("family", [1, 3, 10, 64])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_as_many_prompts_are_needed_as_a_perfect_result_needs(family, level):
    """With one prompt fewer even the same direction on every prompt would not survive the correction."""
    needed = made(family=family, level=level).needed
    for n in (needed, needed - 1):
        p = paired(np.ones(n), np.zeros(n), resamples=99_999).p
        assert (holm([p] + [1.0] * (family - 1))[0] <= 1 - level + 1e-9) == (n == needed)


def test_sentences_say_direction_size_interval_p_and_n():
    units = {"toxicity": "points"}
    percent = Estimate(-12.0, -19.0, -5.0, 200)
    lower = made(-0.1, -0.2, -0.05, n=200, percent=percent, adjusted=0.003)
    assert sentence(lower, units) == (
        "v2 lowers toxicity by 12 % against v1 (95 % CI 5-19 %, p = 0.003, n = 200, Holm)."
    )
    assert sentence(dataclasses.replace(lower, percent=None), units) == (
        "v2 lowers toxicity by 0.1 points against v1 (95 % CI 0.05-0.2 points, p = 0.003, n = 200, Holm)."
    )
    for scale in ("-1 to 1", "probability", "share", ""):
        assert " by 0.3 against v1 (95 % CI 0.1-0.5, p" in sentence(made(), {"toxicity": scale})
    assert sentence(made(level=0.9, adjusted=0.0001), {}) == (
        "v2 raises toxicity by 0.3 against v1 (90 % CI 0.1-0.5, p < 0.001, n = 40, Holm)."
    )
    assert sentence(made(0.1, -0.1, 0.3, adjusted=0.4), {}) == (
        "No difference in toxicity between v1 and v2 could be shown (v2 against v1: 0.1, 95 % CI -0.1 to 0.3, "
        "p = 0.4, n = 40, Holm)."
    )
    assert sentence(made(n=4, family=10), {}) == (
        "n = 4 prompts cannot carry a difference in toxicity between v1 and v2 (Holm over 10 comparisons); use at "
        "least 9."
    )
    assert sentence(made(family=100, resamples=999), {}) == (
        "999 sign flips cannot carry a difference in toxicity between v1 and v2 (Holm over 100 comparisons); use at "
        "least resamples=2000."
    )
    assert made(family=100, resamples=2000).carried


def test_a_percentage_whose_interval_holds_zero_is_not_told_as_a_size():
    odd = made(percent=Estimate(12.0, -0.5, 30.0, 40))
    assert "by 12 % against v1 (95 % CI -0.5 to 30 %" in sentence(odd, {})


def test_what_beats_the_unsteered_model_but_not_a_random_vector_is_said_so():
    plain, equal = made(against="unsteered"), made(0.02, -0.1, 0.1, adjusted=0.8, against="random")
    assert sentences([plain, equal], {}) == [
        "v2 raises toxicity by 0.3 against the unsteered model (95 % CI 0.1-0.5, p = 0.001, n = 40, Holm), but is no "
        f"better than {RANDOM}, as far as could be shown (against that: 0.02, 95 % CI -0.1 to 0.1, p = 0.8, n = 40, "
        "5 random vectors, Holm)."
    ]
    [near] = sentences([plain, made(against="random", among=0.01, adjusted=0.09)], {})
    assert near.endswith("p = 0.09, n = 40, 5 random vectors, Holm; more of them, with controls=, could show it).")
    for short in ({"p": 0.03}, {"mean": -0.3, "low": -0.5, "high": -0.1}):  # of prompts; the other way
        options = {"against": "random", "among": 0.01, "adjusted": 0.09, "family": 9, **short}
        assert "more of them" not in sentences([plain, made(**options)], {})[0]
    opposite = made(-0.3, -0.5, -0.1, against="random")  # the random vector raises it more
    assert (
        f"but is no better than {RANDOM}, which raises it more (against that: -0.3"
        in sentences([plain, opposite], {})[0]
    )
    [both] = sentences([plain, made(against="random")], {})
    assert both.endswith(
        f"n = 40, Holm), and raises it by 0.3 against {RANDOM} (95 % CI 0.1-0.5, p = 0.001, n = 40, 5 random vectors, "
        "Holm)."
    )
    [lone] = sentences([plain, made(against="random", draws=1, adjusted=math.nan)], {})
    assert lone.endswith(
        f"n = 40, Holm), but whether {RANDOM} does as much, a single one with numbers cannot tell; run controls=5 or "
        "more (against that one: 0.3, n = 40)."
    )
    [missing] = sentences([plain, made(n=0, against="random", adjusted=math.nan)], {})
    assert missing.endswith(f", but {RANDOM} could not be compared: it has no numbers.")


def test_random_vectors_have_a_sentence_of_their_own_where_the_unsteered_model_has_none():
    plain = made(0.1, -0.1, 0.3, adjusted=0.4, against="unsteered")
    equal, better = made(0.02, -0.1, 0.1, adjusted=0.8, against="random"), made(against="random")
    assert len(sentences([plain, equal], {})) == 1
    assert sentence(made(against="random", draws=1), {}) == (
        f"A single random vector with numbers cannot carry a difference in toxicity between v2 and {RANDOM} (Holm over "
        "1 comparison), since others may do more or less; run controls=5 or more (against that one: 0.3, n = 40)."
    )
    assert sentences([plain, better], {})[1].startswith(f"v2 raises toxicity by 0.3 against {RANDOM} (95 % CI")
    assert sentences([equal], {})[0].startswith(
        f"No difference in toxicity between v2 and {RANDOM} could be shown (v2 against it: 0.02, 95 % CI"
    )
