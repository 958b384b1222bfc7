"""Pairs of conditions: what is compared, what is corrected, and what the sentences claim."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from steerfn.evaluate import Difference, Estimate, estimate, holm, paired, ratio
from steerfn.evaluate._pairs import UNSTEERED, Pair, analyse, mean_of, plan_pairs
from steerfn.evaluate._sentences import sentence, sentences

RANDOM = "a random vector of the same length"


def scores(n=40, seed=0, **shifts):
    """By condition, n positive numbers that are larger by a shift."""
    random = np.random.default_rng(seed)
    base = random.uniform(1, 2, n)
    return {name: base + shift + random.normal(0, 0.1, n) for name, shift in shifts.items()}


def test_the_plan_has_both_controls_of_every_vector_and_every_pair():
    assert plan_pairs(["v1", "v2", "v3"]) == [
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
        assert (pair.n, pair.left_out, pair.alpha) == (40, 0, pytest.approx(0.1))
    for kind, family in (("vector", 4), ("unsteered", 2)):
        mine = [p for p in found if p.against == kind]
        assert [p.adjusted for p in mine] == holm([p.difference.p for p in mine])
        assert {p.family for p in mine} == {family}


def test_an_effect_is_claimed_where_both_comparisons_show_it_and_corrected_over_metrics():
    values = {}
    for i, metric in enumerate("abc"):
        of = scores(60, seed=i, v=0.06 * i, unsteered=0)
        draws = [scores(60, seed=10 + i, r=0)["r"] for _ in range(3)]
        values[metric] = of | {"random like v": np.stack([*draws, of["unsteered"], of["unsteered"] + 0.01])}
    found = analyse(values, plan_pairs(["v"]), resamples=999)
    plain, random = ([pair for pair in found if pair.against == kind] for kind in ("unsteered", "random"))
    assert {pair.family for pair in found} == {3}
    assert [pair.claim for pair in random] == [max(a.p, b.p) for a, b in zip(plain, random, strict=True)]
    assert [pair.adjusted for pair in random] == holm([pair.claim for pair in random])
    assert [pair.adjusted for pair in plain] == holm([pair.p for pair in plain])
    assert random[0].to_dict()["p_claim"] == random[0].claim


def test_random_vectors_in_blocks_are_the_analysis_of_variance_within_them():
    """`against_random` by loops over what its formula names."""
    random = np.random.default_rng(3)
    block = np.array([0, 1, 0, 1, 1, 0, 0, 1, 1])
    level, own = random.normal(size=9), random.normal(0, 0.5, (2, 5))
    draws = np.stack([level + own[block, j] + random.normal(0, 0.3, 9) for j in range(5)])
    vector = level + 1.5 + random.normal(0, 0.3, 9)
    control, options = "random like v", {"level": 0.9, "seed": 0, "resamples": 999}
    [pair] = analyse(
        {"m": {"v": vector, control: draws}}, [("v", control, "random")], blocks={control: block}, **options
    )
    apart = vector - draws.mean(0)
    between = rest = prompts = each = 0.0
    for b in (0, 1):
        inside, n = draws[:, block == b], int((block == b).sum())
        between += n * 4 * inside.mean(1).var(ddof=1)
        each += 4 * n / 8
        for j in range(5):
            for i in range(n):
                rest += (inside[j, i] - inside[:, i].mean() - inside[j].mean() + inside.mean()) ** 2
        prompts += (apart[block == b] - apart[block == b].mean()) @ apart[block == b]
    w = prompts / (9 - 2) / 9
    t = max(0.0, between / 8 - rest / (4 * 3 + 4 * 4)) / each * (1 + (16 + 25) / 81 / 5)
    t *= 1 + 1.5 * t / (t + w)
    freedom = (t + w) ** 2 / (t**2 / 8 + w**2 / 7)
    assert pair.draws == 10 and pair.difference.estimate.mean == pytest.approx(apart.mean())
    assert pair.among == pytest.approx(2 * stats.t.sf(abs(apart.mean()) / np.sqrt(t + w), freedom))
    margin = stats.t.ppf(0.95, freedom) * np.sqrt(t + w)
    assert pair.difference.estimate.high - apart.mean() == pytest.approx(margin)
    assert pair.difference.p == paired(vector, draws.mean(0), **options).p


def test_prompts_without_a_number_are_left_out_of_their_pair_and_counted():
    values = scores(a=0, b=0.5, c=1)
    values["b"][:3] = np.nan
    values["a"][2:5] = np.inf
    values["c"][:] = np.nan
    ba, ca = analyse({"m": values}, [("b", "a", "vector"), ("c", "a", "vector")], resamples=999)
    assert not ba.sparse and dataclasses.replace(ba, left_out=9).verdict == "too few numbers"
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
    by_prompts = paired(base + 0.7 + noise[5], draws.mean(0), resamples=999)
    assert near.difference.p == by_prompts.p == 0.001 and by_prompts.estimate.low > 0.5  # by prompts alone, no doubt
    assert near.difference.estimate.mean == pytest.approx(by_prompts.estimate.mean)
    assert near.difference.estimate.low < 0  # the interval knows that random vectors differ
    assert near.adjusted == near.p == near.among > 0.3 and near.verdict == "not shown" and near.draws == 5
    [far] = analyse({"m": {"v": base + 9 + noise[5], "random like v": draws}}, plan, resamples=999)
    assert far.among < 0.01 and far.p == max(far.among, 0.001) and far.verdict == "higher"
    assert f"against {RANDOM} (95 % CI" in sentence(far, {}) and "n = 40, 5 random vectors, Holm" in sentence(far, {})
    told = far.to_dict()
    assert (told["p"], told["p_prompts"], told["p_among_random"]) == (far.p, 0.001, far.among)
    assert told["random_vectors"] == 5
    assert mean_of(draws, {"resamples": 99}) == estimate(draws.mean(0), resamples=99)


def test_a_percentage_against_random_vectors_scatters_as_they_do():
    base = 10 + np.random.default_rng(0).uniform(size=40)
    draws = base + np.linspace(-1, 1, 10)[:, None] + np.random.default_rng(1).normal(0, 0.1, (10, 40))
    [pair] = analyse({"m": {"v": 1.5 * base, "random like v": draws}}, [("v", "random like v", "random")])
    assert pair.percent.mean == pytest.approx(100 * (1.5 * base.mean() / draws.mean() - 1))
    wide = [each.high - each.low for each in (pair.percent, pair.difference.estimate)]
    assert wide[0] == pytest.approx(1.5 * 100 * wide[1] / draws.mean(), rel=0.05)


def test_random_vectors_that_agree_are_no_surer_than_the_prompts():
    """Counts do that: none under any random vector, and twice in forty under the vector."""
    few = np.zeros(40)
    few[:2] = 1.0
    plan = [("v", "random like v", "random")]
    [pair] = analyse({"m": {"v": few, "random like v": np.zeros((5, 40))}}, plan, resamples=999)
    error = few.std(ddof=1) / np.sqrt(40)
    assert pair.among == pytest.approx(2 * stats.t.sf(few.mean() / error, 39)) and pair.verdict == "not shown"
    most = np.ones(40)
    most[:4] = 0.0
    [pair] = analyse({"m": {"v": most, "random like v": np.zeros((5, 40))}}, plan, resamples=999)
    assert pair.verdict == "higher"
    [same] = analyse({"m": {"v": np.ones(40), "random like v": np.zeros((5, 40))}}, plan, resamples=999)
    assert same.verdict == "higher" and same.difference.estimate.low < 0.95


@pytest.mark.parametrize("draws", [1, 4])
def test_pitfall_52_fewer_than_five_random_vectors_carry_nothing(draws):
    few = np.stack([scores(seed=i, a=0)["a"] for i in range(draws)])
    values = {"v": scores(a=2)["a"], "random like v": few, UNSTEERED: scores(a=0)["a"]}
    plain, pair = analyse({"m": values}, plan_pairs(["v"]), resamples=999)
    assert plain.verdict == "higher" and pair.few_draws
    assert pair.verdict == "too few random vectors" and not pair.significant


def test_pitfall_54_survivors_carry_nothing():
    values = {"v": scores(a=2)["a"], UNSTEERED: scores(a=0)["a"]}
    values["v"][:9] = np.nan
    [pair] = analyse({"m": values}, plan_pairs(["v"])[:1], resamples=999)
    assert pair.adjusted < 0.01 and pair.n == 31 and pair.verdict == "too few numbers" and not pair.significant
    assert sentence(pair, {}).startswith(
        "Only 31 of 40 prompts have a number of m between v and the unsteered model: nothing is said of those that"
    )


def test_prompts_that_some_random_vectors_have_no_number_for():
    base, draws = np.arange(12.0), np.arange(12.0) + np.array([[0.5], [-0.5], [0.0], [0.2], [0.1], [0.0]])
    draws[0, 3] = draws[1, 7] = np.nan
    draws[5, 2:] = np.nan  # one that ruins most texts is left out, and takes no prompt with it
    [pair] = analyse({"m": {"v": base + 4, "random like v": draws}}, [("v", "random like v", "random")], resamples=99)
    kept = [i for i in range(12) if i not in (3, 7)]
    assert (pair.n, pair.left_out, pair.draws) == (10, 2, 5)
    assert pair.difference.estimate.mean == pytest.approx((base + 4 - draws[:5].mean(0))[kept].mean())
    draws[:, 5] = np.inf
    [pair] = analyse({"m": {"v": base + 4, "random like v": draws}}, [("v", "random like v", "random")], resamples=99)
    assert pair.verdict in ("too few numbers", "no numbers")
    [none] = analyse(
        {"m": {"v": np.full(12, np.nan), "random like v": draws}}, [("v", "random like v", "random")], resamples=99
    )
    assert (none.n, none.verdict) == (0, "no numbers") and math.isnan(none.adjusted)


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
    [few] = sentences([plain, made(against="random", draws=4, adjusted=math.nan)], {})
    assert few.endswith(
        f"n = 40, Holm), but whether {RANDOM} does as much, 4 random vectors with numbers cannot tell; run controls=5 "
        "or more (against those: 0.3, n = 40)."
    )
    [missing] = sentences([plain, made(n=0, against="random", adjusted=math.nan)], {})
    assert missing.endswith(f", but {RANDOM} could not be compared: it has no numbers.")


def test_random_vectors_have_a_sentence_of_their_own_where_the_unsteered_model_has_none():
    plain = made(0.1, -0.1, 0.3, adjusted=0.4, against="unsteered")
    equal, better = made(0.02, -0.1, 0.1, adjusted=0.8, against="random"), made(against="random")
    assert len(sentences([plain, equal], {})) == 1
    assert sentence(made(against="random", draws=1), {}) == (
        f"1 random vector with numbers cannot carry a difference in toxicity between v2 and {RANDOM} (Holm over "
        "1 claim), since others may do more or less; run controls=5 or more (against that one: 0.3, n = 40)."
    )
    assert len(sentences([plain, better], {})) == 1  # an effect needs both
    assert sentences([better], {})[0].startswith(f"v2 raises toxicity by 0.3 against {RANDOM} (95 % CI")
    assert sentences([equal], {})[0].startswith(
        f"No difference in toxicity between v2 and {RANDOM} could be shown (v2 against it: 0.02, 95 % CI"
    )
