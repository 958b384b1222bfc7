"""The texts of a report: taken as they come, and fewer of them where that is asked for."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from steerfn._errors import DataError
from steerfn.datasets import ContrastSet, from_file

T = TypeVar("T")


def contrast_of(data: Any) -> ContrastSet:
    """A contrast set: itself, out of a file, or of a mapping with its two sides.

    Raises:
        DataError: something else, or a side without texts.
        FileError: a file that cannot be read.
    """
    if isinstance(data, ContrastSet):
        return data
    if isinstance(data, (str, os.PathLike)):
        return from_file(data)
    if isinstance(data, Mapping) and set(data) == {"positive", "negative"}:
        return ContrastSet("texts given for this report", data["positive"], data["negative"])
    raise DataError(
        "data is a ContrastSet (sf.datasets.load, sf.datasets.from_file), a file of one, or a mapping "
        f"{{'positive': [...], 'negative': [...]}}, not {data!r:.80} of type {type(data).__name__}."
    )


def subset(data: ContrastSet, limit: int | None, seed: int) -> ContrastSet:
    """At most so many texts a side, pairs kept together, in their order."""
    sides = len(data.positive), len(data.negative)
    if limit is None or max(sides) <= limit:
        return data
    if data.paired:
        return data.subset(drawn(range(sides[0]), limit, seed))
    return data.subset(*(drawn(range(n), limit, seed) for n in sides))


def drawn(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most so many items, drawn with a seed, in their order."""
    if limit is None or len(items) <= limit:
        return list(items)
    kept = np.random.default_rng(seed).choice(len(items), limit, replace=False)
    return [items[i] for i in sorted(kept.tolist())]
