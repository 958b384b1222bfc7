"""How often `compare_vectors` claims what is not there, and finds what is; and how often intervals cover.

    python benchmarks/power.py [--parts size power draws coverage] [--experiments N]

No model: numbers of prompts are drawn, and judged by the functions that judge real ones. Three metrics, forty prompts,
noise of standard deviation 1 in each prompt's difference of two conditions. A direction's mean effect is drawn from a
distribution whose standard deviation, the spread, is in the same unit.

size      A random vector in the vector's place: how often any of three metrics is claimed (Holm over three claims), and
          how often one comparison with random vectors has p < 0.05.
power     An effect of d_z = 0.5 in one of the three metrics: how often it is claimed.
draws     Both by the number of random vectors.
coverage  How often 95 % intervals hold the true mean: 0/1 numbers, rare ones, skewed ones, and ones that are mostly 0.

Sign flips are taken as Student's t-test, which they are next to at forty prompts and which is fast.
"""

import argparse

import numpy as np
from scipy import special

from steerfn.evaluate import estimate, paired
from steerfn.evaluate._against_random import PromptBlock, against_random
from steerfn.evaluate._conditions import CONTROLS, random_slots

PROMPTS, METRICS, LEVEL = 40, 3, 0.95
SPREADS = (0.0, 0.1, 0.25, 0.35)
EFFECT = 0.5  # d_z


def two_valued(share):
    """One value for a share of the directions, another for the others; mean 0, standard deviation 1."""
    return lambda random, shape: ((random.random(shape) < share) - share) / np.sqrt(share * (1 - share))


DIRECTIONS = {
    "normal": lambda random, shape: random.normal(size=shape),
    "skewed (exponential)": lambda random, shape: random.exponential(size=shape) - 1,
    "heavy-tailed (t, 3 degrees)": lambda random, shape: random.standard_t(3, shape) / np.sqrt(3),
    "two-valued (half and half)": two_valued(0.5),
    "two-valued (15 of 100)": two_valued(0.15),
}


def t_test(differences):
    """p of Student's test over the last axis."""
    n = differences.shape[-1]
    t = differences.mean(-1) / (differences.std(-1, ddof=1) / np.sqrt(n))
    return 2 * special.stdtr(n - 1, -np.abs(t))


def holm(p):
    """p-values after Holm's correction over the last axis."""
    order = np.argsort(p, -1)
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(steps, -1), -1)
    return adjusted


def experiments(random, count, spread, directions, effect=None, controls=CONTROLS, prompts=PROMPTS):
    """p against the unsteered model and against random vectors, `[count, metrics]`; without an effect the vector is one
    more random vector."""
    _, block = random_slots(controls, range(prompts), 0)
    draws = len(random_slots(controls, range(prompts), 0)[0])
    shape, sd = (count, METRICS), 1 / np.sqrt(2)
    unsteered, vector = (random.normal(0, sd, (*shape, prompts)) for _ in range(2))
    if effect is None:
        vector += spread * directions(random, (*shape, 1))
    else:
        vector[:, 0] += effect
    parts = []
    for number in range(block.max() + 1):
        inside = block == number
        own = spread * directions(random, (*shape, draws, 1))
        parts.append((vector[..., inside], own + random.normal(0, sd, (*shape, draws, int(inside.sum())))))
    apart = np.concatenate([mine - others.mean(-2) for mine, others in parts], -1)
    test = against_random([PromptBlock.of(*part) for part in parts], LEVEL)
    return t_test(vector - unsteered), np.maximum(t_test(apart), test.p)


def claimed(plain, beside):
    """Whether an effect is claimed, `[count, metrics]`."""
    return holm(np.maximum(plain, beside)) < 1 - LEVEL


def size(random, count):
    print(
        f"\nA random vector in the vector's place, {CONTROLS} others beside it: any claim in three metrics / one p < 0.05"
    )
    print(f"{'effects of directions':<30}" + "".join(f"{f'spread {spread:g}':>16}" for spread in SPREADS))
    worst = 0.0
    for name, directions in DIRECTIONS.items():
        line = f"{name:<30}"
        for spread in SPREADS:
            plain, beside = experiments(random, count, spread, directions)
            wrong, one = claimed(plain, beside).any(-1).mean(), (beside < 1 - LEVEL).mean()
            worst = max(worst, wrong)
            line += f"{f'{wrong:.3f} / {one:.3f}':>16}"
        print(line, flush=True)
    print(f"the most of any: {worst:.3f} (standard error {np.sqrt(0.05 * 0.95 / count):.3f})")


def power(random, count):
    print(f"\nAn effect of d_z = {EFFECT} in one of three metrics, {PROMPTS} prompts: how often it is claimed")
    print(f"{'effects of directions':<30}" + "".join(f"{f'spread {spread:g}':>16}" for spread in SPREADS))
    for name, directions in DIRECTIONS.items():
        line = f"{name:<30}"
        for spread in SPREADS:
            line += f"{claimed(*experiments(random, count, spread, directions, EFFECT))[:, 0].mean():>16.3f}"
        print(line, flush=True)
    plain, _ = experiments(random, count, 0.0, DIRECTIONS["normal"], EFFECT)
    print(f"against the unsteered model alone: {(holm(plain)[:, 0] < 1 - LEVEL).mean():.3f}")


def draws(random, count):
    print("\nBy the number of random vectors; beyond ten a prompt is continued under ten of them")
    print(f"{'random vectors':<16}{'power, spread':>24}{'false claims, spread 0.35':>44}")
    names = list(DIRECTIONS)
    print(
        f"{'':<16}{'0':>8}{'0.1':>8}{'0.25':>8}" + "".join(f"{name.split('(')[0].strip()[:12]:>14}" for name in names)
    )
    for controls in (5, 10, 20, CONTROLS, 80):
        powers = [
            claimed(*experiments(random, count, spread, DIRECTIONS["normal"], EFFECT, controls))[:, 0].mean()
            for spread in SPREADS[:3]
        ]
        sizes = [
            claimed(*experiments(random, count, SPREADS[-1], each, controls=controls)).any(-1).mean()
            for each in DIRECTIONS.values()
        ]
        print(
            f"{controls:<16}"
            + "".join(f"{each:>8.3f}" for each in powers)
            + "".join(f"{each:>14.3f}" for each in sizes),
            flush=True,
        )


NUMBERS = {
    "0 or 1, half": (lambda r, n: r.random(n) < 0.5, 0.5),
    "0 or 1, rare (5 of 100)": (lambda r, n: r.random(n) < 0.05, 0.05),
    "difference of two 0/1": (lambda r, n: (r.random(n) < 0.3, r.random(n) < 0.2), 0.1),
    "normal": (lambda r, n: r.normal(1, 1, n), 1.0),
    "skewed (lognormal)": (lambda r, n: r.lognormal(0, 1, n), np.exp(0.5)),
    "mostly 0 (8 of 10)": (lambda r, n: (r.random(n) < 0.2) * r.exponential(1, n), 0.2),
    "rarely not 0 (5 of 100)": (lambda r, n: (r.random(n) < 0.05) * r.exponential(1, n), 0.05),
}


def coverage(random, count):
    sizes, count = (8, 15, 30, 60, 120, 200), max(200, count // 10)
    print(
        f"\nHow often a 95 % interval holds the true mean, of {count} samples (standard error {np.sqrt(0.0475 / count):.3f})"
    )
    print(f"{'numbers':<28}" + "".join(f"{f'n = {n}':>9}" for n in sizes))
    for name, (draw, mean) in NUMBERS.items():
        line = f"{name:<28}"
        for n in sizes:
            hits = 0
            for trial in range(count):
                sample = draw(random, n)
                if isinstance(sample, tuple):
                    found = paired(*sample, seed=trial, resamples=99).estimate
                else:
                    found = estimate(sample, seed=trial, resamples=999)
                hits += found.low <= mean <= found.high
            line += f"{hits / count:>9.3f}"
        print(line, flush=True)


PARTS = {"size": size, "power": power, "draws": draws, "coverage": coverage}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="what to run; default all")
    arguments.add_argument("--experiments", type=int, default=5000, help="of each kind (default %(default)s)")
    chosen = arguments.parse_args()
    for part in chosen.parts:
        PARTS[part](np.random.default_rng(0), chosen.experiments)
