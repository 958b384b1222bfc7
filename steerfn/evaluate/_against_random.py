"""Whether a vector does more than random vectors of its length: the one test behind every such comparison."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from steerfn.values import import_extra

FEWEST_DRAWS = 5
"""With fewer random vectors nothing is said: they do not show how far random vectors differ from each other."""
SHAPE = 1.5
"""How much wider directions are taken to scatter where their scatter is all there is, since it need not be normal:
chosen by simulation (`benchmarks/power.py`), so that skewed and heavy-tailed effects make no more false claims."""


@dataclasses.dataclass(frozen=True)
class AgainstRandom:
    """A vector's mean as one more of random vectors' means.

    Attributes:
        mean: of the vector minus the random vectors, over prompts.
        p: of the two-sided test; NaN where nothing can be tested.
        margin: half the width of the interval of `mean`; NaN likewise.
        draws: the random vectors that have numbers.
    """

    mean: Any
    p: Any
    margin: Any
    draws: int


@dataclasses.dataclass(frozen=True)
class PromptBlock:
    """Sums of squares over prompts that are continued under the same random vectors; axes before the last are kept.

    Attributes:
        apart: the sum over prompts of the vector minus the mean random vector.
        of_prompts: of those differences about their mean.
        of_draws: of the random vectors' means about theirs, times the prompts.
        of_rest: of what neither the prompt nor the random vector explains.
        prompts: how many prompts.
        draws: how many random vectors.
    """

    apart: Any
    of_prompts: Any
    of_draws: Any
    of_rest: Any
    prompts: int
    draws: int

    @classmethod
    def of(cls, vector: np.ndarray, random: np.ndarray) -> "PromptBlock":
        """The sums of a vector's numbers `[..., prompts]` and of random vectors' `[..., draws, prompts]`."""
        by_prompt, by_draw = random.mean(-2), random.mean(-1)
        apart, middle = vector - by_prompt, by_draw.mean(-1, keepdims=True)
        rest = random - by_prompt[..., None, :] - (by_draw - middle)[..., None]
        prompts, draws = random.shape[-1], random.shape[-2]
        return cls(
            apart.sum(-1),
            ((apart - apart.mean(-1, keepdims=True)) ** 2).sum(-1),
            prompts * ((by_draw - middle) ** 2).sum(-1),
            (rest**2).sum((-1, -2)),
            prompts,
            draws,
        )


def against_random(blocks: Iterable[PromptBlock], level: float = 0.95) -> AgainstRandom:
    """Test whether a vector's mean is one more of random vectors' means.

    Random vectors scatter: with prompts enough any direction differs from the mean of a few others. The variance of
    `mean` under the hypothesis that the vector is one more random vector is therefore

    `V = W + T (1 + 1.5 T / (T + W))`, with `T = a max(0, (D - E) / m)` and `a = 1 + sum_b (n_b / n)^2 / k_b`,

    where `W` is the variance of the mean over prompts, `D` and `E` the mean squares of random vectors and of what is
    left in an analysis of variance within blocks, `m` the prompts of a random vector, `n_b` the prompts and `k_b` the
    random vectors of block `b`. The statistic `mean / sqrt(V)` has Student's distribution with Satterthwaite's degrees
    of freedom. The factor of `T` grows with its share, since directions' effects need not be normal.

    Args:
        blocks: prompts that share their random vectors.
        level: of the interval.

    Source: Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance Components"; Crawford & Howell
    1998, "Comparing an Individual's Test Score Against Norms Derived from Small Samples", for one value among others.
    """
    parts = list(blocks)
    n, draws = sum(part.prompts for part in parts), sum(part.draws for part in parts)
    free_draws = sum(part.draws - 1 for part in parts)
    free_rest = sum((part.draws - 1) * (part.prompts - 1) for part in parts)
    free_prompts = n - len(parts)
    if not parts or not free_draws or not free_prompts:
        mean = sum(part.apart for part in parts) / n if n else math.nan
        return AgainstRandom(mean, math.nan, math.nan, draws)
    mean = sum(part.apart for part in parts) / n
    of_prompts = sum(part.of_prompts for part in parts) / free_prompts / n
    each = sum((part.draws - 1) * part.prompts for part in parts) / free_draws
    rest = sum(part.of_rest for part in parts) / max(free_rest, 1)  # 0 without freedom: all of it is the directions'
    spread = np.maximum(sum(part.of_draws for part in parts) / free_draws - rest, 0.0) / each
    of_draws = spread * (1 + sum((part.prompts / n) ** 2 / part.draws for part in parts))
    total = np.maximum(of_draws + of_prompts, np.finfo(np.float64).tiny)
    of_draws = of_draws * (1 + SHAPE * of_draws / total)
    total = np.maximum(of_draws + of_prompts, np.finfo(np.float64).tiny)
    freedom = total**2 / np.maximum(of_draws**2 / free_draws + of_prompts**2 / free_prompts, np.finfo(np.float64).tiny)
    freedom = np.clip(freedom, min(free_draws, free_prompts), free_draws + free_prompts)
    special = import_extra("scipy.special", "evaluate")
    error = np.sqrt(total)
    p = 2 * special.stdtr(freedom, -np.abs(mean) / error)
    return AgainstRandom(mean, p, special.stdtrit(freedom, (1 + level) / 2) * error, draws)


def complete(vector: np.ndarray, random: np.ndarray, block: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """By block, the prompts with a number under all that is compared, and the random vectors' numbers on them.

    A random vector that has numbers for less than half of the prompts that the vector has numbers for is left out, so
    that it does not take the others' prompts with it.

    Args:
        vector: a number for each prompt, NaN where there is none, `[prompts]`.
        random: the same under the random vectors of the prompt's block, `[slots, prompts]`.
        block: the block of each prompt, `[prompts]`.

    Returns:
        For each block that has any, the indices of its prompts and the numbers `[draws, prompts]`.
    """
    blocks_left = []
    for number in np.unique(block):
        inside = np.flatnonzero((block == number) & np.isfinite(vector))
        known = np.isfinite(random[:, inside])
        slots = np.flatnonzero(2 * known.sum(1) >= len(inside))
        prompts = inside[known[slots].all(0)]
        if len(prompts) and len(slots):
            blocks_left.append((prompts, random[np.ix_(slots, prompts)]))
    return blocks_left
