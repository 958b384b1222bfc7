"""Whether a process leaks: a rule that noise does not set off and a slow, steady growth does.

Resident memory is read when nothing runs, after a garbage collection and after the allocator has given back what it
holds free. The slope is Theil and Sen's (the median over all pairs), over the last half of the samples, since the
first calls fill caches and the allocator's arenas, more and more slowly.
"""

import ctypes
import dataclasses
import gc
import itertools
import math
import os
import statistics
from pathlib import Path

MIB = 2.0**20
FEWEST, SHARE, ERRORS = 8, 0.75, 4.0


@dataclasses.dataclass(frozen=True)
class Sample:
    """Resident memory at a moment: minutes and calls since the start, and MiB."""

    minutes: float
    calls: int
    mib: float


def resident() -> float:
    """MiB of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / MIB


ARENA_MAX, MMAP_THRESHOLD = -8, -3
"""Names of glibc's `mallopt`."""


def steady() -> None:
    """Before any thread starts: one arena, and tensors in pages of their own, so that no fragments pile up (glibc)."""
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(ARENA_MAX, 1)
        tune(MMAP_THRESHOLD, 2**16)


def settle() -> None:
    """Give back what is free: Python's cycles, then the allocator's pages."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclasses.dataclass(frozen=True)
class Trend:
    """What memory did over some samples.

    Attributes:
        first: median of the first third, in MiB.
        last: median of the last third.
        per_minute: slope in MiB a minute.
        per_thousand: slope in MiB a thousand calls.
        error: standard error of that, from how the samples scatter about the line.
    """

    first: float
    last: float
    per_minute: float
    per_thousand: float
    error: float

    def leaks(self, block: float) -> bool:
        """Whether a thousand calls add more than `SHARE` of a block's weights (`block` MiB), beyond noise."""
        return self.per_thousand > SHARE * block and self.per_thousand > ERRORS * self.error


def trend(samples: list[Sample]) -> Trend:
    """The trend of at least eight samples.

    Raises:
        ValueError: fewer.
    """
    if len(samples) < FEWEST:
        raise ValueError(f"{len(samples)} samples of memory are too few to tell a leak from noise; run longer.")
    third = len(samples) // 3
    settled = samples[len(samples) // 2 :]
    thousands = [sample.calls / 1000 for sample in settled]
    mib = [sample.mib for sample in settled]
    slope = _slope(thousands, mib)
    level = statistics.median(y - slope * x for x, y in zip(thousands, mib, strict=True))
    left = [(y - level - slope * x) ** 2 for x, y in zip(thousands, mib, strict=True)]
    scatter = math.sqrt(sum(left) / (len(left) - 2))
    spread = math.sqrt(sum((x - statistics.mean(thousands)) ** 2 for x in thousands))
    return Trend(
        first=statistics.median(sample.mib for sample in samples[:third]),
        last=statistics.median(sample.mib for sample in samples[-third:]),
        per_minute=_slope([sample.minutes for sample in settled], mib),
        per_thousand=slope,
        error=scatter / spread,
    )


def _slope(x: list[float], y: list[float]) -> float:
    pairs = itertools.combinations(zip(x, y, strict=True), 2)
    return statistics.median((d - b) / (c - a) for (a, b), (c, d) in pairs if c > a)
