"""The best of many sites by chance alone: the permutation null of the highest held-out AUC."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn.datasets import Texts, divide
from steerfn.discover._engine._method import RowPair
from steerfn.discover._engine._quality import FOLDS, auc
from steerfn.output import Record
from steerfn.values import DataError

PERMUTATIONS = 199
MOST = 500
"""Units that are relabelled; of more a sample, whose null is wider, so nothing is claimed too early."""


@dataclasses.dataclass(frozen=True)
class Chance(Record):
    """The distribution of the best site's held-out AUC under permuted labels.

    Attributes:
        median: of the highest held-out AUC over the sites.
        high: which chance exceeds once in twenty times.
        p: how often chance reaches the highest AUC that was measured, `(1 + reached) / (1 + permutations)`.
        sites: how many sites there are to choose from.
        permutations: how many times the labels were exchanged.
    """

    median: float
    high: float
    p: float
    sites: int
    permutations: int

    def __str__(self) -> str:
        return (
            f"the best of {self.sites} by chance: AUC {self.median:.2f}, one time in twenty {self.high:.2f} or more; "
            f"p = {self.p:.3f}"
        )

    @classmethod
    def from_dict(cls, values: Any) -> "Chance":
        """The inverse of `dataclasses.asdict`.

        Raises:
            DataError: values that are no such numbers.
        """
        try:
            return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})
        except (TypeError, KeyError):
            raise DataError(
                f"The chance of the best site must be a mapping of five numbers, not {values!r:.120}."
            ) from None


def chance_of_best(
    states: Sequence[RowPair], best: float, texts: Texts, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> Chance | None:
    """The permutation null of the highest cross-validated AUC over some sites.

    Labels are exchanged within pairs, or between texts or groups, so that each exchange is as likely as what was
    measured if the labels mean nothing; for each the folds are made anew, the mean difference is fitted without each
    fold, and the highest AUC over the sites is kept. It is the null of the mean difference whatever the method was:
    other methods need minutes, and a direction that was fitted to noise is as good as another on held-out texts.

    Args:
        best: the highest AUC that was measured.
        seed: of the exchanges and the folds.

    Returns:
        None where the labels cannot be exchanged or the folds tell nothing.
    """
    random = np.random.default_rng(seed)
    texts, rows = _sample(texts, random)
    relabelled, folds = [], []
    for _ in range(permutations):
        labels = _exchange(texts, random)
        fold = divide(texts, min(FOLDS, *texts.sides), int(random.integers(2**31)), labels)
        if int(fold.max()) and all(len(set(labels[fold != one])) == 2 for one in range(int(fold.max()) + 1)):
            relabelled.append(labels)
            folds.append(fold)
    if not relabelled:
        return None
    reached = np.zeros(len(relabelled))
    for pair in states:
        both = pair.sort()
        values = torch.cat([both.positive.values, both.negative.values])[torch.from_numpy(rows)]
        scores = _scores(values @ values.T, np.array(relabelled), np.array(folds))
        for i, (labels, score) in enumerate(zip(relabelled, scores, strict=True)):
            positive = torch.from_numpy(labels == 1)
            reached[i] = max(reached[i], auc(score[positive], score[~positive]))
    return Chance(
        median=float(np.median(reached)),
        high=float(np.quantile(reached, 0.95)),
        p=(1 + int((reached >= best).sum())) / (1 + len(reached)),
        sites=len(states),
        permutations=len(reached),
    )


def _sample(texts: Texts, random: np.random.Generator) -> tuple[Texts, np.ndarray]:
    """At most `MOST` units, and which rows they are."""
    units = np.array(texts.units)
    known = np.unique(units)
    kept = known if len(known) <= MOST else random.choice(known, MOST, replace=False)
    rows = np.flatnonzero(np.isin(units, kept))
    numbers = np.unique(units[rows], return_inverse=True)[1]
    tokens = tuple(texts.tokens[i] for i in rows)
    return dataclasses.replace(
        texts, units=tuple(numbers.tolist()), tokens=tokens, positive=int((rows < texts.positive).sum())
    ), rows


def _exchange(texts: Texts, random: np.random.Generator) -> np.ndarray:
    """Labels that are as likely as the texts' own if labels mean nothing."""
    labels, units = texts.labels, np.array(texts.units)
    count = int(units.max()) + 1
    if texts.paired:  # the pairs of one unit are not independent, so they are turned together
        return np.where(random.random(count)[units] < 0.5, 1 - labels, labels)
    means = np.bincount(units, labels, minlength=count) / np.bincount(units, minlength=count)
    if ((means == 0) | (means == 1)).all():  # every unit is of one side
        return random.permutation(means)[units].astype(int)
    exchanged = labels.copy()
    for unit in range(count):
        rows = np.flatnonzero(units == unit)
        exchanged[rows] = random.permutation(labels[rows])
    return exchanged


def _scores(gram: Tensor, labels: np.ndarray, folds: np.ndarray) -> Iterator[Tensor]:
    """The held-out scores of every text by mean differences, for each relabelling, `[texts]`.

    A mean difference is a weighted sum of the texts, so all that scores need is the texts' inner products.
    """
    y, fold = torch.from_numpy(labels).bool(), torch.from_numpy(folds)
    scores = torch.zeros(y.shape, dtype=torch.float64)
    for one in range(int(fold.max()) + 1):
        out = fold == one
        high, low = ((~out & side).double() for side in (y, ~y))
        high, low = (side / side.sum(1, keepdim=True).clamp_min(1) for side in (high, low))
        projected = (high - low) @ gram
        norm = (projected * (high - low)).sum(1, keepdim=True).clamp_min(0).sqrt()
        middle = (projected * (high + low)).sum(1, keepdim=True) / 2
        scores = torch.where(out, (projected - middle) / torch.where(norm == 0, 1.0, norm), scores)
    yield from scores
