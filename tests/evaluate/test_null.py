"""How often claims are false, intervals miss, and effects are found: by simulation, without a model."""

import numpy as np
import pytest
from scipy import stats

from steerfn.evaluate._against_random import PromptBlock, against_random
from steerfn.evaluate._pairs import UNSTEERED, analyse, plan_pairs
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
    plan = plan_pairs(names)
    conditions = list(dict.fromkeys(name for treatment, control, _ in plan for name in (treatment, control)))
    draws = [f"{name} {draw}" for name in names for draw in range(2, 6)]  # of random vectors, beside the first
    random, claims, uncorrected = np.random.default_rng(2), [], []
    for trial in range(EXPERIMENTS):
        values = {metric: experiment(random, [*conditions, *draws], 20) for metric in ("m", "k")}
        for of in values.values():
            for name in names:
                control = f"random like {name}"
                of[control] = np.stack([of[control], *(of[draw] for draw in draws if draw.startswith(name))])
        pairs = analyse(values, plan, seed=trial, resamples=399)
        assert len(pairs) == 10
        claims.append(any(pair.significant for pair in pairs if pair.against == "unsteered"))
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
        assert share(claims) > 0 and share(by_prompts) > 0.8  # what the second p-value is for


DIRECTIONS = {
    "normal": lambda r, shape: r.normal(size=shape),
    "skewed": lambda r, shape: r.exponential(size=shape) - 1,
    "heavy-tailed": lambda r, shape: r.standard_t(3, shape) / np.sqrt(3),
    "two-valued": lambda r, shape: r.choice([-1.0, 1.0], shape),
    "rarely something": lambda r, shape: ((r.random(shape) < 0.15) - 0.15) / np.sqrt(0.15 * 0.85),
}


def p_of_claims(random, count, spread, draw, effect=None):
    """p against the unsteered model and against forty random vectors, ten to each of forty prompts; three metrics."""
    shape, sd = (count, 3), 1 / np.sqrt(2)
    plain, vector = random.normal(0, sd, (*shape, 40)), random.normal(0, sd, (*shape, 40))
    if effect is None:
        vector += spread * draw(random, (*shape, 1))
    else:
        vector[:, 0] += effect
    blocks = [
        PromptBlock.of(each, spread * draw(random, (*shape, 10, 1)) + random.normal(0, sd, (*shape, 10, 10)))
        for each in np.split(vector, 4, axis=-1)
    ]
    return stats.ttest_rel(vector, plain, axis=-1).pvalue, against_random(blocks).p


def claims_of(plain, beside):
    p = np.sort(np.maximum(plain, beside), -1)
    return p[:, 0] * 3 < 0.05  # Holm claims something if it claims the least


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.25, 0.35])
@pytest.mark.parametrize("draw", DIRECTIONS)
def test_pitfall_52_random_vectors_are_seldom_called_effects(draw, spread):
    plain, beside = p_of_claims(np.random.default_rng(9), 2000, spread, DIRECTIONS[draw])
    noise = 2 * np.sqrt(0.05 * 0.95 / 2000)
    assert share(claims_of(plain, beside)) <= 0.06 + noise and share(beside < 0.05) <= 0.06 + noise
    assert share(claims_of(plain, plain)) < 0.06 or spread  # and would be by the unsteered model alone


@pytest.mark.parametrize(("spread", "power"), [(0.0, 0.6), (0.1, 0.5)])
def test_planted_effects_are_claimed_at_the_defaults(spread, power):
    """d_z = 0.5 in one of three metrics, at forty prompts."""
    plain, beside = p_of_claims(np.random.default_rng(10), 4000, spread, DIRECTIONS["normal"], 0.5)
    p = np.maximum(plain, beside)
    others = np.sort(p[:, 1:], -1)
    rank = 3 - (others < p[:, :1]).sum(-1)
    steps = np.maximum(p[:, 0] * rank, np.where(others[:, 0] < p[:, 0], others[:, 0] * 3, 0))
    assert share(steps < 0.05) > power - 0.02


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
