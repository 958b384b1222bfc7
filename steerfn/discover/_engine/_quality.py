"""How good a direction is: what it says of texts that it was not made of."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerfn.datasets import Texts, describe_texts, divide, reason_against
from steerfn.discover._engine._method import Method, StateRows
from steerfn.operators import as_vector
from steerfn.output import Record, format_or_dash
from steerfn.values import DataError, Site, SteeringVector, public, unit, warn

FOLDS = 5
NO_SPREAD = 1e-12
"""A standard deviation below this share of the scores is rounding of float64."""


@dataclasses.dataclass(frozen=True)
class Quality(Record):
    """How well a direction at one site tells the two sides apart; see `quality`.

    Attributes:
        auc: held-out area under the ROC curve: the chance that a positive text scores above a negative one, 0.5 for
            a direction that says nothing. None where cross-validation tells nothing, see `reason`.
        cohens_d: the difference of the held-out mean scores, in pooled standard deviations. None where the AUC is,
            or where scores that differ have no spread.
        pair_cosine: mean cosine between the differences of two pairs, 1 where all point the same way. None where the
            counts differ, or with one pair.
        relative_norm: the direction's norm over the mean norm of the hidden states that were read.
        n: how many positive and negative texts.
        folds: of the cross-validation; 0 where there was none.
        interval: of the AUC, 95 %, for as many independent units (pairs, texts or groups) as there are.
        pair_accuracy: the share of pairs in which the positive text scores above the negative one, held out. Pairs
            that differ in topic can be told apart (0.88) where texts are not (AUC 0.71). None where there are no
            pairs.
        reason: why cross-validation tells nothing here, or None where it does.

    Example:
        >>> from steerfn.discover import Quality
        >>> Quality(
        ...     auc=0.93, cohens_d=2.1, pair_cosine=0.2, relative_norm=0.35, n=(60, 60), folds=5,
        ...     interval=(0.87, 0.96), pair_accuracy=0.98,
        ... )
        Quality(AUC 0.930 (0.87 to 0.96), d 2.10, pairs 0.98, pair cosine 0.20, norm 0.35; 60 + 60 texts, 5 folds)
    """

    auc: float | None
    cohens_d: float | None
    pair_cosine: float | None
    relative_norm: float
    n: tuple[int, int]
    folds: int
    interval: tuple[float, float] | None = None
    pair_accuracy: float | None = None
    reason: str | None = None

    def __repr__(self) -> str:
        interval = "" if self.interval is None else f" ({self.interval[0]:.2f} to {self.interval[1]:.2f})"
        shown = (
            f"AUC {format_or_dash(self.auc, '.3f')}{interval}",
            f"d {format_or_dash(self.cohens_d, '.2f')}",
            *([] if self.pair_accuracy is None else [f"pairs {self.pair_accuracy:.2f}"]),
            f"pair cosine {format_or_dash(self.pair_cosine, '.2f')}",
            f"norm {format_or_dash(self.relative_norm, '.3g')}",
        )
        why = "" if self.reason is None else f"; cross-validation tells nothing here: {self.reason}"
        return f"Quality({', '.join(shown)}; {self.n[0]} + {self.n[1]} texts, {self.folds} folds{why})"

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values, the inverse of `from_dict`."""
        interval = None if self.interval is None else list(self.interval)
        return {
            **dataclasses.asdict(self),
            "n": {"positive": self.n[0], "negative": self.n[1]},
            "interval": interval,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Quality":
        """The inverse of `to_dict`. What older files lack is None.

        Raises:
            DataError: values that are no quality.
        """
        try:
            needed = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
            later = {f.name: values.get(f.name) for f in dataclasses.fields(cls) if f.name not in needed}
            if later["interval"] is not None:
                low, high = later["interval"]
                later["interval"] = low, high
            return cls(**{**needed, **later, "n": (needed["n"]["positive"], needed["n"]["negative"])})
        except (TypeError, KeyError, ValueError, AttributeError):
            names = ", ".join(f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING)
            raise DataError(f"A quality must be a mapping with {names}, not {values!r:.120}.") from None


@public
def quality(vector: SteeringVector) -> dict[Site, Quality]:
    """The quality that a vector made with `quality=True` carries in its metadata, by site.

    A text is scored by a direction that was fitted without it: with the texts divided into `k` folds (at most five),
    `u_f` the unit direction and `m_f` the midpoint between the two means of all folds but `f`, a text of fold `f` with
    hidden state `h` scores `<h - m_f, u_f>`. AUC (the chance that a positive text scores above a negative one) and
    Cohen's d (the difference of the sides' means in standard deviations) are those of all scores together. Where the
    counts are equal, text `i` of either side is in the same fold, since pairs share a prompt; with `groups=` so are the
    texts of a group. Texts that occur twice are not looked for, see `lint_pairs`.

    Folds are stratified by the token that is read, on either side. Published questions are balanced by their answers
    (Yes and No, A and B); with folds at random the direction that is fitted on the others turns against the texts that
    are held out, and the AUC of a good vector falls below 0.5. Where the folds cannot be stratified, there is no AUC,
    and `reason` says why.

    The interval is Newcombe's (method 5), which has a width at an AUC of 1 too. It is that of these texts by these
    directions: which of many sites was chosen by its AUC is another matter, see `Profile.chance`.

    The numbers are those of the vector as it was discovered: a multiple of it still says the same.

    Args:
        vector: a vector, as discovered or loaded.

    Raises:
        DataError: a vector without quality, or with a damaged one.

    Source: Hanley and McNeil 1982 for the area under the curve as the share of pairs; Newcombe 2006 for its interval;
    Cohen 1988 for d.

    Example:
        >>> import steerfn as sf
        >>> v = sf.mean_difference(model, tokenizer, happy, sad, 14, position="mean", quality=True)
        >>> sf.quality(v)[sf.resid_post[14]].auc
        1.0
    """
    vector = as_vector(vector, "quality")
    stored = vector.metadata.get("quality")
    if not isinstance(stored, Mapping):
        raise DataError(
            "This vector has no quality in its metadata; compute it with quality=True, as in "
            "sf.mean_difference(..., quality=True)."
        )
    lacking = [site for site in vector.sites if site.name not in stored]
    if lacking:
        raise DataError(
            f"This vector's quality covers {', '.join(list(stored)[:8]) or 'no site'}, without {lacking[0]}; compute "
            "it with quality=True at all sites."
        )
    return {site: Quality.from_dict(stored[site.name]) for site in vector.sites}


def measure(
    method: Method,
    positive: StateRows,
    negative: StateRows,
    *,
    seed: int = 0,
    folds: int = FOLDS,
    direction: Tensor | None = None,
    texts: Texts | None = None,
) -> Quality:
    """The quality of a method's direction from activations at one site, cross-validated as `quality` says.

    Args:
        seed: another seed, other folds.
        folds: at most; never more than pairs, texts or groups on a side.
        direction: what the method makes of all rows, where that is known.
        texts: what is read of them, and which belong together; by default pairs where the counts are equal.

    Warns:
        SteerWarning: the method has too few texts without one of the folds.
    """
    sides = positive.sort(), negative.sort()
    counts = len(sides[0]), len(sides[1])
    texts = describe_texts(counts) if texts is None else texts
    if direction is None:
        direction = method.of(*sides)
    norms = torch.cat([side.values for side in sides]).norm(dim=-1)
    typical = float(norms.mean())
    fold = divide(texts, max(1, min(folds, *texts.sides)), seed)
    folds, scores, reason = int(fold.max()) + 1, None, reason_against(texts, fold)
    if reason is None:
        halves = torch.from_numpy(fold).split(counts)
        try:
            scores = held_out_scores(method, *sides, (halves[0], halves[1]))
        except DataError as error:  # what all texts are enough for, those of the other folds need not be
            reason = f"without one of {folds} folds of {counts[0]} positive and {counts[1]} negative texts, {error}"
            warn(f"The direction could not be cross-validated, so it has no held-out AUC: {reason}")
    area = None if scores is None else auc(*scores)
    return Quality(
        auc=area,
        cohens_d=None if scores is None else cohens_d(*scores),
        pair_cosine=pair_cosine(sides[0].values - sides[1].values) if texts.paired else None,
        relative_norm=float(direction.norm()) / typical if typical else 0.0,
        n=counts,
        folds=0 if scores is None else folds,
        interval=None if area is None else auc_interval(area, *texts.sides),
        pair_accuracy=None if scores is None or not texts.paired else pair_accuracy(*scores),
        reason=reason,
    )


def held_out_scores(
    method: Method, positive: StateRows, negative: StateRows, folds: tuple[Tensor, Tensor]
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


def auc_interval(area: float, positive: int, negative: int, z: float = 1.959964) -> tuple[float, float]:
    """Newcombe's interval of an AUC: the areas from which what was measured is less than `z` standard errors away.

    The standard error is Hanley and McNeil's for that area, with the mean of the two counts in place of either
    (Newcombe 2006, method 5), so an AUC of 1 has an interval too.

    Args:
        positive: independent positives.
        negative: independent negatives.
        z: of the confidence, by default 95 %.
    """
    more = (positive + negative) / 2 - 1

    def within(other: float) -> bool:
        spread = 1 + more * ((1 - other) / (2 - other) + other / (1 + other))
        return (area - other) ** 2 <= z**2 * other * (1 - other) * spread / (positive * negative)

    ends = []
    for outer in (0.0, 1.0):
        near, far = area, outer
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (middle, far) if within(middle) else (near, middle)
        ends.append(near)
    return ends[0], ends[1]


def pair_accuracy(positive: Tensor, negative: Tensor) -> float:
    """The share of pairs in which the positive scores higher; a tie counts one half."""
    return float(((positive > negative).double() + (positive == negative).double() / 2).mean())


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
