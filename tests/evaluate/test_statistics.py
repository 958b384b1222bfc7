"""Intervals, tests and corrections against scipy, brute force and loops."""

import itertools
import math
import sys
import warnings

import numpy as np
import pytest
from scipy import stats

import steerfn as sf
from steerfn.evaluate import Difference, Estimate, by_prompt, crawford_howell, estimate, holm, paired, proportion, ratio
from steerfn.evaluate._sign_flip import least_p, sign_flip


def drawn(n, seed=0, skewed=False):
    random = np.random.default_rng(seed)
    return random.exponential(size=n) if skewed else random.normal(0.3, 1, n)


def expanded(n, level):
    """The level at which a plain bootstrap interval of n normal numbers is as wide as Student's."""
    return 1 - 2 * stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1))


@pytest.mark.parametrize("n", [6, 40, 300])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_an_interval_is_scipys_bca_at_the_expanded_level(n, level):
    x = drawn(n, skewed=True)
    found = estimate(x, level=level, seed=3, resamples=2000)
    ends = stats.bootstrap(
        (x,), np.mean, n_resamples=2000, confidence_level=expanded(n, level), method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert (found.mean, found.n, found.level) == (pytest.approx(x.mean()), n, level)


def test_with_many_units_it_is_the_plain_bca_interval():
    x = drawn(2000, skewed=True)
    found = estimate(x)
    ends = stats.bootstrap((x,), np.mean, method="BCa", rng=np.random.default_rng(0), batch=500).confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=2e-3)


def test_with_few_units_it_is_wider_than_the_plain_one():
    x = drawn(6)
    found = estimate(x)
    ends = stats.bootstrap((x,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert found.low < ends.low and found.high > ends.high


@pytest.mark.parametrize(
    "values", [[0, 2], [0, 0, 3], [1, 1, 1, 5], [0] * 30 + [2], [1e-300, 2e-300], [1e200, 2e200, 4e200], [-1, 1, 0]]
)
def test_tiny_and_tied_samples_have_an_interval_around_their_mean(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate(values)
    assert found.low <= found.mean <= found.high and found.low < found.high
    rounding = 1e-12 * max(map(abs, values))
    assert min(values) - rounding <= found.low and found.high <= max(values) + rounding


@pytest.mark.parametrize("value", [0.1, -3.0, 7.0])
@pytest.mark.parametrize("n", [2, 8, 200])
def test_pitfall_53_constant_values_are_not_certain(value, n):
    """Wilson's limit of the share that may differ, by as much as 0 does."""
    found = estimate([value] * n)
    share = stats.binomtest(0, n).proportion_ci(0.95, method="wilson").high
    assert (found.low, found.high) == pytest.approx((value - abs(value) * share, value + abs(value) * share))
    other = ratio([value * 2] * n, [value] * n)
    assert other.low < 100 < other.high and other.mean == pytest.approx(100)


@pytest.mark.parametrize(("ones", "n"), [(0, 8), (8, 8), (1, 2), (3, 50)])
def test_pitfall_53_numbers_that_are_0_or_1_have_wilsons_interval(ones, n):
    assert estimate([1] * ones + [0] * (n - ones)) == proportion(ones, n)


def test_pitfall_53_differences_of_two_shares_have_bonett_and_prices_interval():
    a, b = [1, 1, 1, 1, 0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    found = paired(a, b)
    more, less, n = 6, 1, 10
    p, q = (more + 1) / (n + 2), (less + 1) / (n + 2)
    margin = stats.norm.ppf(0.975) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    assert (found.estimate.low, found.estimate.high) == pytest.approx((p - q - margin, p - q + margin))
    assert found.estimate.mean == pytest.approx(0.5) and found.p == sign_flip(np.array(a) - np.array(b), 0, 9999)
    equal = paired([0, 1], [0, 1]).estimate
    assert equal.low < -0.6 and equal.high > 0.6  # two questions do not exclude a cost


def test_groups_are_the_units_of_every_test():
    """Signs are flipped and units resampled by group: the mean of each group is one number."""
    random = np.random.default_rng(0)
    groups = np.repeat(["q1", "q2", "q3", "q4", "q5", "q6", "q7"], [1, 2, 3, 4, 5, 6, 7])
    x, y = (random.normal(size=len(groups)) + random.normal(size=7).repeat(range(1, 8)) for _ in range(2))
    a, b = (np.array([each[groups == g].mean() for g in np.unique(groups)]) for each in (x, y))
    assert estimate(x, groups=groups) == estimate(a) != estimate(x)
    found, same = paired(x, y, groups=list(groups)), paired(a, b)
    assert (found.n, found.p, found.effect) == (7, same.p, pytest.approx(same.effect))
    assert (found.estimate.low, found.estimate.high) == pytest.approx((same.estimate.low, same.estimate.high))
    assert ratio(x + 9, y + 9, groups=groups).low == pytest.approx(ratio(a + 9, b + 9).low, rel=0.02)
    with pytest.raises(sf.DataError, match="groups has 2 labels for 28 numbers"):
        estimate(x, groups=["a", "b"])


@pytest.mark.heavy
def test_with_groups_claims_that_are_false_are_as_rare_as_they_say():
    """ICC 0.3, ten questions of eight answers each: by answer one in five is called different."""
    random, by_group, by_answer = np.random.default_rng(8), [], []
    groups = np.repeat(np.arange(10), 8)
    for trial in range(400):
        own, each = random.normal(0, np.sqrt(0.3), 10), random.normal(0, np.sqrt(0.7), 80)
        differences = own[groups] + each
        by_answer.append(paired(differences, 0 * differences, seed=trial, resamples=399).p < 0.05)
        by_group.append(paired(differences, 0 * differences, groups=groups, seed=trial, resamples=399).p < 0.05)
    assert np.mean(by_group) <= 0.08 and np.mean(by_answer) > 0.19


def test_one_value_has_no_interval():
    found = estimate([2.5])
    assert found.mean == 2.5 and math.isnan(found.low) and math.isnan(found.high) and found.n == 1
    assert str(found) == "2.5 (n = 1, too few for an interval)"


def test_estimates_and_differences_in_words():
    assert str(Estimate(0.42, 0.31, 0.53, 40)) == "0.42 (95 % CI 0.31 to 0.53, n = 40)"
    assert str(Estimate(1234.5, -0.0, 100.4, 3, 0.9)) == "1234 (90 % CI 0 to 100, n = 3)"
    told = Difference(Estimate(-1.5, -2.0, -1.0, 9), 0.0004, -2.3456, 9)
    assert str(told) == "-1.5 (95 % CI -2 to -1, n = 9), p < 0.001, d_z = -2.35"


def brute_force(d):
    """The part of all sign patterns whose sum is as far from 0."""
    signs = itertools.product((-1, 1), repeat=len(d))
    return np.mean([abs(np.dot(s, d)) >= abs(np.sum(d)) - 1e-9 for s in signs])


@pytest.mark.parametrize(
    "differences",
    [[1.0], [1, 2], [3, -1, 2], [0.1] * 5, [0, 0, 1, 2], [0.0, 0.0], [1, -1, 2, -2], [0.3, 0.2, -0.1, 0.7, 0.9, 1.1]],
)
def test_a_sign_flip_test_of_few_units_tries_every_pattern(differences):
    found = sign_flip(np.array(differences, float), 0, 9999)
    assert found == pytest.approx(brute_force(differences))
    if len(differences) > 1:
        same = stats.permutation_test((np.array(differences, float),), np.mean, permutation_type="samples")
        assert found == pytest.approx(same.pvalue)


def test_with_many_units_it_draws_patterns_and_agrees_with_scipy_and_with_all_of_them():
    d = drawn(18, seed=4)
    exact = sign_flip(d, 0, 2**18)
    assert exact == pytest.approx(brute_force(d), abs=1e-12)
    some = sign_flip(d, 0, 9999)
    spread = 4 * math.sqrt(exact * (1 - exact) / 9999)
    assert some != exact and abs(some - exact) < spread
    theirs = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=4999, rng=np.random.default_rng(0)
    )
    assert abs(some - theirs.pvalue) < 3 * spread
    assert sign_flip(d, 1, 9999) != some == sign_flip(d, 0, 9999)


def test_patterns_drawn_in_batches_are_as_many(monkeypatch):
    d = drawn(60, seed=1)
    whole = sign_flip(d, 0, 5000)
    monkeypatch.setattr("steerfn.evaluate._sign_flip.BATCH", 60 * 7)
    parts = sign_flip(d, 0, 5000)
    # Both are a count out of 5001; other bits of the random stream make other patterns, so they agree but for chance.
    assert (parts * 5001) == pytest.approx(round(parts * 5001)) and abs(parts - whole) < 0.03


def test_no_p_is_zero_and_the_least_is_what_the_units_allow():
    assert sign_flip(np.ones(200), 0, 99) == 0.01 == least_p(200, 99)
    for n in range(1, 9):
        assert sign_flip(np.ones(n), 0, 999) == least_p(n, 999) == 2 / 2**n


def test_a_paired_difference_is_that_of_its_differences():
    a, b = drawn(30, seed=1), drawn(30, seed=2)
    found, back = paired(a, b, resamples=999), paired(b, a, resamples=999)
    alone = estimate(a - b, resamples=999)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((alone.low, alone.high))
    assert found.effect == pytest.approx((a - b).mean() / (a - b).std(ddof=1)) == pytest.approx(-back.effect)
    assert found.n == 30 and found.p == sign_flip(a - b, 0, 999)
    assert back.estimate.mean == pytest.approx(-found.estimate.mean) and back.p == pytest.approx(found.p)


def test_what_rounding_leaves_is_no_difference():
    a, b = np.full(8, 0.1 + 0.2), np.full(8, 0.3)
    assert (a != b).all()
    found = paired(a, b)
    assert (found.estimate.mean, found.p, found.effect) == (0, 1, 0)


def test_the_same_difference_everywhere_is_of_infinite_effect():
    found = paired(np.arange(6) + 2.0, np.arange(6))
    assert found.effect == math.inf and found.p == 2 / 2**6 and found.estimate.low < 2 < found.estimate.high
    assert math.isnan(paired([1.0], [2.0]).effect) and paired([1.0], [2.0]).p == 1


def test_a_ratio_is_resampled_in_pairs():
    random = np.random.default_rng(0)
    control = random.gamma(3, size=50)
    treatment = control * random.uniform(0.5, 1.1, 50)
    found = ratio(treatment, control, resamples=2000)

    def change(t, c, axis=-1):
        return 100 * (t.mean(axis) / c.mean(axis) - 1)

    ends = stats.bootstrap(
        (treatment, control), change, paired=True, n_resamples=2000, confidence_level=expanded(50, 0.95),
        method="BCa", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert found.mean == pytest.approx(100 * (treatment.sum() / control.sum() - 1))
    doubled = ratio(2 * control, control)
    share = stats.binomtest(0, 50).proportion_ci(0.95, method="wilson").high
    assert (doubled.low, doubled.mean, doubled.high) == pytest.approx((100 - 200 * share, 100, 100 + 200 * share))


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 10), (40, 40), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_proportions_have_wilsons_interval(successes, n, level):
    found = proportion(successes, n, level)
    ends = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (found.mean, found.n) == (successes / n, n)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-12)
    assert 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize("k", [2, 5, 30])
def test_a_number_among_others_is_a_t_test_of_a_sample_of_one(k):
    others = drawn(k)
    for value in (-3.0, 0.2, 9.0):
        assert crawford_howell(value, others) == pytest.approx(stats.ttest_ind([value], others).pvalue)
    assert crawford_howell(others.mean(), others) == pytest.approx(1)


def test_among_others_that_are_all_the_same_there_is_no_doubt():
    assert crawford_howell(0.3, [0.1 + 0.2] * 3) == 1.0 and crawford_howell(0.0, [0, 0]) == 1.0
    assert crawford_howell(0.4, [0.3, 0.3]) == 0.0 and crawford_howell(1e-9, [0, 0]) == 0.0


def test_holm_by_hand_and_as_a_closed_test():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []
    random = np.random.default_rng(0)
    for _ in range(20):
        p = random.uniform(0, 0.3, 5).round(2)  # with ties
        sets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k)]
        # Rejected is what every intersection with it rejects, each by Bonferroni.
        closed = [max(min(1, len(s) * min(p[list(s)])) for s in sets if i in s) for i in range(5)]
        assert holm(p) == pytest.approx(closed)


def test_entries_of_a_prompt_are_averaged():
    prompts = ["b", "a", "b", "c", "a", "b"]
    values = np.array([1, 2, 3, np.nan, 4, np.nan])
    assert by_prompt(values, prompts) == pytest.approx([2, 3, np.nan], nan_ok=True)
    chats = [[{"role": "user", "content": text}] for text in "aba"]
    assert by_prompt([1, 2, 3], chats).tolist() == [2, 2]
    assert by_prompt([1, 2, 3], [5, 5, 6]).tolist() == [1.5, 3]


def test_the_options_change_what_they_name():
    x, y = drawn(30), drawn(30, seed=1)
    first = estimate(x)
    assert first == estimate(x)
    assert estimate(x, level=0.5).high < first.high
    assert estimate(x, seed=1) != first and estimate(x, resamples=99) != first
    assert paired(x, y, seed=1) != paired(x, y) != paired(x, y, level=0.5) != paired(x, y, resamples=99)
    assert ratio(y + 9, x + 9, seed=1) != ratio(y + 9, x + 9) != ratio(y + 9, x + 9, level=0.5)
    assert ratio(y + 9, x + 9, resamples=99) != ratio(y + 9, x + 9)
    assert proportion(3, 9, level=0.5).high < proportion(3, 9).high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate([]), "values must be numbers, one for each unit and at least one, not an array of (0,)."),
        (lambda: estimate([[1.0]]), "not an array of (1, 1)."),
        (lambda: estimate(["x"]), "values must be numbers, one for each unit, not ['x']."),
        (lambda: estimate([1, math.nan]), "values[1] is nan; leave out units without a number first."),
        (lambda: paired([1, 2], [1, math.inf]), "control[1] is inf; leave out"),
        (lambda: paired([1, 2], [1]), "There are 2 numbers of the treatment and 1 of the control"),
        (lambda: ratio([1, 2], [1]), "There are 2 numbers of the treatment and 1 of the control."),
        (lambda: ratio([1, 2], [1, -1]), "needs a control whose mean is not 0; take the difference instead."),
        (
            lambda: estimate([1, 2], level=1),
            "`level` must be a finite number > 0 and < 1, got 1; 0.95 is usual.",
        ),
        (
            lambda: estimate([1, 2], level="high"),
            "`level` must be a finite number > 0 and < 1, got 'high'; 0.95 is usual.",
        ),
        (lambda: paired([1, 2], [1, 2], seed=-1), "`seed` must be a non-negative integer, got -1."),
        (lambda: estimate([1, 2], resamples=50), "`resamples` must be an integer >= 99, got 50."),
        (lambda: proportion(3, 2), "A proportion must be a number of successes out of a positive n, not 3 of 2."),
        (lambda: proportion(0, 0), "not 0 of 0."),
        (lambda: proportion(0.5, 2), "not 0.5 of 2."),
        (lambda: proportion(1, 2, level=0), "`level` must be a finite number > 0 and < 1"),
        (
            lambda: crawford_howell(1, [2]),
            "The test compares a number with at least two others, all finite, not 1 with [2].",
        ),
        (lambda: crawford_howell(math.nan, [1, 2]), "all finite, not nan with [1, 2]."),
        (lambda: crawford_howell(1, [1, math.inf]), "all finite, not 1 with [1, inf]."),
        (lambda: crawford_howell("x", [1, 2]), "all finite, not 'x' with [1, 2]."),
        (lambda: crawford_howell(1, 3), "all finite, not 1 with 3."),
        (lambda: crawford_howell([1], [[2], [3]]), "all finite, not [1] with [[2], [3]]."),
        (lambda: holm([0.1, 1.5]), "`p_values[1]` must be a finite number >= 0 and <= 1, got 1.5."),
        (lambda: holm([math.nan]), "`p_values[0]` must be a finite number >= 0 and <= 1, got nan."),
        (lambda: holm(["0.1"]), "`p_values[0]` must be a finite number >= 0 and <= 1, got '0.1'."),
        (lambda: by_prompt([1, 2], ["a"]), "There are values of shape (2,) for 1 prompts; pass one for each."),
    ],
)
def test_errors_by_their_text(call, message):
    with pytest.raises(sf.DataError) as caught:
        call()
    assert message in str(caught.value)


def test_without_scipy_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(sf.SteerError, match=r'pip install -c constraints.txt -e "\.\[evaluate\]"'):
        estimate([1.0, 2.0])
    assert proportion(1, 2).n == 2 and holm([0.5]) == [0.5]  # which need none
