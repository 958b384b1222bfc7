"""How good a direction is: what it says of texts that it was not made of."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerfn._errors import DataError, SteerWarning
from steerfn._site import Site
from steerfn._vector import SteeringVector, unit
from steerfn.discover.engine._method import Method
from steerfn.discover.engine._rows import Rows
from steerfn.operators._base import as_vector

FOLDS = 5
NO_SPREAD = 1e-12
"""A standard deviation below this share of the scores is rounding of float64."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well a direction at one site tells the two sides apart; see `quality`.

    Attributes:
        auc: held-out area under the ROC curve: the chance that a positive text scores above a negative one, 0.5 for
            a direction that says nothing. None with fewer than two texts on a side, or too few for the method.
        cohens_d: the difference of the held-out mean scores, in pooled standard deviations. None where the AUC is,
            or where scores that differ have no spread.
        pair_cosine: mean cosine between the differences of two pairs, 1 where all point the same way. None where the
            counts differ, or with one pair.
        relative_norm: the direction's norm over the mean norm of the hidden states that were read.
        n: how many positive and negative texts.
        folds: of the cross-validation; 0 where there was none.

    Example:
        >>> from steerfn import Quality
        >>> Quality(auc=0.93, cohens_d=2.1, pair_cosine=0.2, relative_norm=0.35, n=(60, 60), folds=5)
        Quality(AUC 0.930, d 2.10, pair cosine 0.20, relative norm 0.35; 60 + 60 texts, 5 folds)
    """

    auc: float | None
    cohens_d: float | None
    pair_cosine: float | None
    relative_norm: float
    n: tuple[int, int]
    folds: int

    def __repr__(self) -> str:
        shown = (
            f"AUC {number(self.auc, '.3f')}",
            f"d {number(self.cohens_d, '.2f')}",
            f"pair cosine {number(self.pair_cosine, '.2f')}",
            f"relative norm {number(self.relative_norm, '.3g')}",
        )
        return f"Quality({', '.join(shown)}; {self.n[0]} + {self.n[1]} texts, {self.folds} folds)"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, the inverse of `from_dict`."""
        return {**dataclasses.asdict(self), "n": {"positive": self.n[0], "negative": self.n[1]}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Quality":
        """The inverse of `to_dict`.

        Raises:
            DataError: values that are no quality.
        """
        try:
            found = {field.name: values[field.name] for field in dataclasses.fields(cls)}
            return cls(**{**found, "n": (found["n"]["positive"], found["n"]["negative"])})
        except (TypeError, KeyError):
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise DataError(f"A quality is a mapping with {names}, not {values!r:.120}.") from None


def quality(v: SteeringVector) -> dict[Site, Quality]:
    """What a vector that was made with `quality=True` says of itself, by site.

    A text is scored by a direction that was fitted without it: with the texts divided into `k` folds (at most five),
    `u_f` the unit direction and `m_f` the midpoint between the two means of all folds but `f`, a text of fold `f`
    with hidden state `h` scores `<h - m_f, u_f>`. AUC and Cohen's d are those of all scores together. Where the
    counts are equal text `i` of either side is in the same fold, since pairs share a prompt; texts that occur twice
    are not looked for, see `lint_pairs`. The folds depend on `seed` alone.

    The numbers are those of the vector as it was discovered: a multiple of it still says the same.

    Args:
        v: a vector, as discovered or loaded.

    Raises:
        DataError: a vector without quality, or with a damaged one.

    Source: Hanley and McNeil 1982 for the area under the curve as the share of pairs; Cohen 1988 for d.

    Example:
        >>> import steerfn as sf
        >>> v = sf.mean_difference(model, tokenizer, happy, sad, 14, quality=True)  # doctest: +SKIP
        >>> sf.quality(v)[sf.resid_post[14]].auc  # doctest: +SKIP
        0.93
    """
    v = as_vector(v, "quality")
    held = v.metadata.get("quality")
    if not isinstance(held, Mapping):
        raise DataError(
            "This vector does not say how good it is; compute it with quality=True, as in "
            "sf.mean_difference(..., quality=True)."
        )
    lacking = [site for site in v.sites if site.name not in held]
    if lacking:
        raise DataError(
            f"This vector's quality is that of {', '.join(list(held)[:8]) or 'no site'}, without {lacking[0]}; compute "
            "it with quality=True at all sites."
        )
    return {site: Quality.from_dict(held[site.name]) for site in v.sites}


def measure(
    method: Method,
    positive: Rows,
    negative: Rows,
    *,
    seed: int = 0,
    folds: int = FOLDS,
    direction: Tensor | None = None,
) -> Quality:
    """The quality of a method's direction from activations at one site, cross-validated as `quality` says.

    Args:
        method: makes directions.
        positive: activations of the positive texts.
        negative: of the negative ones.
        seed: another seed, other folds.
        folds: at most; never more than texts on a side.
        direction: what the method makes of all rows, where that is known.

    Warns:
        SteerWarning: the method has too few texts without one of the folds.
    """
    sides = positive.ordered(), negative.ordered()
    counts = len(sides[0]), len(sides[1])
    if direction is None:
        direction = method.of(*sides)
    norms = torch.cat([side.values for side in sides]).norm(dim=-1)
    typical = float(norms.mean())
    folds = min(folds, *counts)
    scores = None
    if folds >= 2:
        try:
            scores = held_out_scores(method, *sides, folds_of(counts, folds, seed))
        except DataError as error:  # what all texts are enough for, those of the other folds need not be
            warnings.warn(
                f"The direction could not be cross-validated, so it has no held-out AUC: without one of {folds} folds "
                f"of {counts[0]} positive and {counts[1]} negative texts, {error}",
                SteerWarning,
                stacklevel=2,
            )
    return Quality(
        auc=None if scores is None else auc(*scores),
        cohens_d=None if scores is None else cohens_d(*scores),
        pair_cosine=pair_cosine(sides[0].values - sides[1].values) if counts[0] == counts[1] else None,
        relative_norm=float(direction.norm()) / typical if typical else 0.0,
        n=counts,
        folds=0 if scores is None else folds,
    )


def folds_of(counts: tuple[int, int], folds: int, seed: int) -> tuple[Tensor, Tensor]:
    """The fold of each text of either side: as even as can be, and that of its pair where the counts are equal."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randperm(counts[0], generator=random) % folds
    return first, first if counts[0] == counts[1] else torch.randperm(counts[1], generator=random) % folds


def held_out_scores(
    method: Method, positive: Rows, negative: Rows, folds: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The score of every text by the direction of the folds that it is not in."""
    scores = tuple(torch.zeros(len(side), dtype=torch.float64) for side in (positive, negative))
    for fold in range(int(folds[0].max()) + 1):
        out = folds[0] == fold, folds[1] == fold
        train = positive[~out[0]], negative[~out[1]]
        axis = unit(method.of(*train))
        middle = (train[0].values.mean(0) + train[1].values.mean(0)) / 2
        for side, which, score in zip((positive, negative), out, scores, strict=True):
            score[which] = (side.values[which] - middle) @ axis
    return scores[0], scores[1]


def auc(positive: Tensor, negative: Tensor) -> float:
    """The share of pairs (positive, negative) in which the positive scores higher; a tie counts one half."""
    ranked = negative.sort().values
    below, upto = (torch.searchsorted(ranked, positive, right=right) for right in (False, True))
    return float((below + upto).sum()) / (2 * len(positive) * len(negative))


def cohens_d(positive: Tensor, negative: Tensor) -> float | None:
    """`(mean(p) - mean(n)) / s`, with `s^2` the pooled variance; None where `s` is 0 and the means differ."""
    counts = len(positive), len(negative)
    difference = float(positive.mean() - negative.mean())
    squares = sum(float(side.var()) * (n - 1) for side, n in zip((positive, negative), counts, strict=True))
    spread = math.sqrt(squares / (sum(counts) - 2))
    rounding = NO_SPREAD * float(torch.cat([positive, negative]).abs().max())
    if spread > rounding:
        return difference / spread
    return 0.0 if abs(difference) <= rounding else None


def pair_cosine(differences: Tensor) -> float | None:
    """The mean over `i < j` of the cosine of two differences, `(|sum_i u_i|^2 - sum_i |u_i|^2) / (n (n - 1))`.

    A pair without a difference has cosine 0 with every other. None for a single pair.
    """
    n = len(differences)
    if n < 2:
        return None
    units = unit(differences)
    return float(units.sum(0).square().sum() - units.square().sum()) / (n * (n - 1))


def number(value: float | None, form: str) -> str:
    """A number in a table, or what stands for none."""
    return "-" if value is None else format(value, form)
