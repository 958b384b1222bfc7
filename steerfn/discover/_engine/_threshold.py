"""The threshold of a score that best tells two kinds of texts apart, by F1."""

import dataclasses

import torch
from torch import Tensor

from steerfn.output import Record
from steerfn.values import Site, unit

NEVER_BELOW = -2.0
"""The threshold under which no cosine is: true of every text."""
ROUNDING = 1e-6
"""Cosines that differ by less are equal: a model computes them in float32."""


@dataclasses.dataclass(frozen=True)
class Hits(Record):
    """How often a condition was right: of `tp + fn` texts for which it should hold, and `fp + tn` for which not.

    Attributes:
        tp: held, as it should.
        fp: held, and should not.
        fn: did not hold, and should.
        tn: did not hold, as it should.

    Example:
        >>> from steerfn.discover import Hits
        >>> Hits(tp=9, fp=1, fn=3, tn=11)
        Hits(F1 0.818, precision 0.900, recall 0.750; 12 + 12 texts)
    """

    tp: float
    fp: float
    fn: float
    tn: float

    @property
    def f1(self) -> float:
        """`2 tp / (2 tp + fp + fn)`, the harmonic mean of precision and recall."""
        return 2 * self.tp / max(1, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """The share of right ones among those for which it held; 0 where it never did."""
        return self.tp / max(1, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """The share for which it held among those for which it should."""
        return self.tp / max(1, self.tp + self.fn)

    @property
    def always(self) -> float:
        """The F1 of a condition that always holds: what is to be beaten."""
        positive = self.tp + self.fn
        return 2 * positive / max(1, 2 * positive + self.fp + self.tn)

    def __repr__(self) -> str:
        return (
            f"Hits(F1 {self.f1:.3f}, precision {self.precision:.3f}, recall {self.recall:.3f}; "
            f"{self.tp + self.fn} + {self.fp + self.tn} texts)"
        )


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The best threshold at one site.

    Attributes:
        site: where the state is read.
        sign: 1, or -1 where the condition holds on the other side of a given vector.
        threshold: of the cosine with the vector times the sign.
        hits: on the texts that choose.
        margin: the gap around the threshold in which no cosine lies, in standard deviations of all cosines.
    """

    site: Site
    sign: int
    threshold: float
    hits: Hits
    margin: float


def cosines(h: Tensor, direction: Tensor) -> Tensor:
    """The cosine of each state with a direction, or with one of its own; 0 where either is zero."""
    return (unit(h) * unit(direction)).sum(-1)


def left_out_cosines(h: Tensor, positive: Tensor) -> Tensor:
    """The cosine of each state with the difference of means of all the others."""
    directions = torch.empty_like(h)
    for side, sign in ((positive, 1), (~positive, -1)):
        own, other = h[side], h[~side].mean(0)
        directions[side] = sign * ((own.sum(0) - own) / (len(own) - 1) - other)
    return cosines(h, directions)


def hits(held: Tensor, positive: Tensor) -> Hits:
    """How often answers are right."""
    return Hits(
        tp=int((held & positive).sum()),
        fp=int((held & ~positive).sum()),
        fn=int((~held & positive).sum()),
        tn=int((~held & ~positive).sum()),
    )


def candidate(site: Site, scores: Tensor, positive: Tensor, sign: int) -> Candidate:
    """The best threshold at a site, for the scores of texts."""
    threshold, gap = best_threshold(scores, positive)
    spread = float(scores.std(correction=0))
    return Candidate(site, sign, threshold, hits(scores > threshold, positive), gap / spread if spread else 0.0)


def best_threshold(scores: Tensor, positive: Tensor) -> tuple[float, float]:
    """The threshold with the highest F1 of `score > threshold`, and the gap that it is in the middle of.

    Of equals the one in the widest gap; the threshold that all scores are above has none.
    """
    ordered, order = scores.sort(descending=True)
    right = positive[order].cumsum(0)
    held = torch.arange(1, len(ordered) + 1)
    f1 = 2.0 * right / (held + positive.sum())
    gaps = torch.cat([ordered[:-1] - ordered[1:], ordered.new_zeros(1)])
    cuts = [i for i in range(len(ordered)) if i == len(ordered) - 1 or float(gaps[i]) > ROUNDING]
    best = max(cuts, key=lambda i: (float(f1[i]), float(gaps[i])))
    if best == len(ordered) - 1:
        return NEVER_BELOW, 0.0
    return float((ordered[best] + ordered[best + 1]) / 2), float(gaps[best])


def rank(candidate: Candidate) -> tuple[float, float]:
    """The sort key of a candidate: its F1, then its margin."""
    return candidate.hits.f1, candidate.margin
