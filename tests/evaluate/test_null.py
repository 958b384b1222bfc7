"""How often claims are false, intervals miss, and effects are found: by simulation, without a model."""

import numpy as np
import pytest
from scipy import stats

from steerfn.evaluate._among import among
from steerfn.evaluate._pairs import UNSTEERED, analyse, planned
from steerfn.evaluate._statistics import estimate

EXPERIMENTS = 1000


def share(events):
    return float(np.mean(events))


def experiment(random, names, n, effects=None):
    """One number for each prompt under every condition: prompts differ, conditions do not but for `effects`."""
    level = random.normal(size=n)  # what a prompt does whatever the condition
    return {name: level + random.normal((effects or {}).get(name, 0), 1, n) for name in names}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("n", "draw", "mean"),
    [
        (10, lambda r, n: r.normal(0.5, 2, n), 0.5),
        (40, lambda r, n: r.normal(0.5, 2, n), 0.5),
        (200, lambda r, n: r.lognormal(0, 0.5, n), np.exp(0.125)),
    ],
    ids=["n=10", "n=40", "n=200, skewed"],
)
def test_intervals_cover_as_often_as_they_say(n, draw, mean):
    random, hits = np.random.default_rng(n), []
    for trial in range(EXPERIMENTS):
        found = estimate(draw(random, n), seed=trial, resamples=999)
        hits.append(found.low <= mean <= found.high)
    assert 0.93 <= share(hits) <= 0.97


@pytest.mark.heavy
def test_one_comparison_makes_a_false_claim_one_time_in_twenty():
    random, claims = np.random.default_rng(1), []
    for trial in range(EXPERIMENTS):
        values = {"m": experiment(random, ("v", UNSTEERED), 40)}
        [pair] = analyse(values, [("v", UNSTEERED, "unsteered")], seed=trial, resamples=999)
        claims.append(pair.significant)
    assert 0.03 <= share(claims) <= 0.07


@pytest.mark.heavy
def test_a_whole_family_makes_a_false_claim_one_time_in_twenty_at_most():
    """Two vectors, two metrics, ten comparisons, nothing in any of them."""
    names = ("v1", "v2")
    plan = planned(names)
    conditions = list(dict.fromkeys(name for treatment, control, _ in plan for name in (treatment, control)))
    draws = [f"{name} {draw}" for name in names for draw in (2, 3)]  # of random vectors, beside the first
    random, claims, uncorrected = np.random.default_rng(2), [], []
    for trial in range(EXPERIMENTS):
        values = {metric: experiment(random, [*conditions, *draws], 20) for metric in ("m", "k")}
        for of in values.values():
            for name in names:
                control = f"random like {name}"
                of[control] = np.stack([of[control], *(of[draw] for draw in draws if draw.startswith(name))])
        pairs = analyse(values, plan, seed=trial, resamples=399)
        assert len(pairs) == 10
        claims.append(any(pair.significant for pair in pairs))
        uncorrected.append(any(pair.difference.p < 0.05 for pair in pairs))
    assert 0.01 <= share(claims) <= 0.07
    assert share(uncorrected) > 0.2  # what the correction is for


def directions(random, n, spread, effects):
    """Prompts' numbers of several directions, whose mean effects differ by `spread` and by what is planted."""
    level = random.normal(size=n)
    return np.stack([level + random.normal(effect, spread) + random.normal(0, 1, n) for effect in effects])


@pytest.mark.heavy
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_one_more_random_vector_is_called_better_than_random_ones_one_time_in_twenty_at_most(spread):
    """However many prompts there are: with 400 any two directions differ on them."""
    random, claims, by_prompts = np.random.default_rng(5), [], []
    for trial in range(EXPERIMENTS):
        vector, *draws = directions(random, 400, spread, np.zeros(6))
        values = {"m": {"v": vector, "random like v": np.stack(draws)}}
        [pair] = analyse(values, [("v", "random like v", "random")], seed=trial, resamples=199)
        claims.append(pair.significant)
        by_prompts.append(pair.difference.p < 0.05)
    assert share(claims) <= 0.07
    if spread:
        assert share(claims) >= 0.03 and share(by_prompts) > 0.8  # what the second p-value is for


@pytest.mark.heavy
@pytest.mark.parametrize("often", [0.05, 0.15, 0.2, 0.5])
def test_random_vectors_of_which_some_do_a_thing_and_others_nothing_cost_little_more(often):
    """Far from normal: each direction scores 0 or 0.2 on every prompt."""
    random = np.random.default_rng(7)
    drawn = 0.2 * (random.random((6000, 6)) < often)
    claims = [among(value, others) < 0.05 for value, *others in drawn]
    assert 0 < share(claims) <= 0.08


@pytest.mark.heavy
@pytest.mark.parametrize("k", [5, 10])
def test_a_direction_apart_is_told_from_random_ones_with_the_power_that_theory_gives(k):
    n, spread, effect = 200, 1.0, 4.0
    scale = np.sqrt(spread**2 + 1 / n) * np.sqrt(1 + 1 / k)
    critical = stats.t.ppf(0.975, k - 1)
    power = stats.nct.sf(critical, k - 1, effect / scale) + stats.nct.cdf(-critical, k - 1, effect / scale)
    random, found = np.random.default_rng(6), []
    for trial in range(400):
        vector, *draws = directions(random, n, spread, [effect, *np.zeros(k)])
        values = {"m": {"v": vector, "random like v": np.stack(draws)}}
        [pair] = analyse(values, [("v", "random like v", "random")], seed=trial, resamples=199)
        found.append(pair.verdict == "higher")
    assert share(found) == pytest.approx(power, abs=0.05)


@pytest.mark.heavy
def test_planted_effects_are_found_with_the_power_that_theory_gives():
    n, effect, trials = 40, 0.5, 600
    freedom, shift = n - 1, effect * np.sqrt(n)
    critical = stats.t.ppf(0.975, freedom)
    power = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
    assert 0.8 < power < 0.95
    random, found = np.random.default_rng(3), []
    for trial in range(trials):
        # Two conditions with noise of sd 1 each: their difference has sd sqrt(2).
        values = {"m": experiment(random, ("v", UNSTEERED), n, {"v": effect * np.sqrt(2)})}
        [pair] = analyse(values, [("v", UNSTEERED, "unsteered")], seed=trial, resamples=999)
        found.append(pair.verdict == "higher")
    assert share(found) == pytest.approx(power, abs=0.05)


def test_prompts_and_not_texts_are_what_counts():
    """Ten texts of each of ten prompts are ten observations: taken for a hundred, they would claim far too often."""
    from steerfn.evaluate import by_prompt

    random, claims, naive = np.random.default_rng(4), [], []
    for trial in range(150):
        prompts = np.repeat(np.arange(10), 10)
        # A condition changes every prompt a bit, at random and in no direction; its texts scatter little about that.
        first = random.normal(size=10)[prompts] + random.normal(0, 0.3, 100)
        second = random.normal(size=10)[prompts] + random.normal(0, 0.3, 100)
        for kept, values in (
            (claims, {"v": by_prompt(first, prompts), UNSTEERED: by_prompt(second, prompts)}),
            (naive, {"v": first, UNSTEERED: second}),
        ):
            [pair] = analyse({"m": values}, [("v", UNSTEERED, "unsteered")], seed=trial, resamples=199)
            kept.append(pair.significant)
    assert share(claims) < 0.12 and share(naive) > 0.3
