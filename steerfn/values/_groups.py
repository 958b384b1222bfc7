"""Groups: which rows belong together (the answers of one question, the turns of one conversation)."""

import itertools
from collections.abc import Hashable, Mapping
from typing import Any

from steerfn.values._errors import DataError


def number_groups(groups: Any, count: int, rows: str = "texts") -> list[int]:
    """The group of each row as a number, counted from 0 in the order in which groups first appear.

    Rows of one group are not independent: cross-validation keeps them in one fold, and a test takes the group as its
    unit.

    Args:
        groups: one label for each row: a list, array, tensor or column of texts or numbers.
        count: how many rows there are.
        rows: what the error calls them.

    Raises:
        DataError: something other than a list of labels, another count, a label that is missing, or a single group.

    Example:
        >>> number_groups(["q1", "q1", "q7"], 3)
        [0, 0, 1]
    """
    return _number_labels(_labels(groups, count, rows), rows)


def number_groups_by_kind(groups: Any, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """The same where there are rows of several kinds (harmful and harmless requests, or texts and questions).

    Args:
        groups: a mapping of kinds to labels, or the labels of one kind after those of the other. A row without a label
            is a group of its own.
        counts: how many rows there are of each kind. Equal labels are one group, whatever the kinds.

    Raises:
        DataError: as `number_groups`, or a kind that there is not.

    Example:
        >>> number_groups_by_kind({"harmful": ["q1", "q1"]}, {"harmful": 2, "harmless": 2})
        {'harmful': [0, 0], 'harmless': [1, 2]}
    """
    if groups is None or isinstance(groups, Mapping):
        by_kind = dict(groups or {})
        if unknown := [kind for kind in by_kind if kind not in counts]:
            raise DataError(f"groups has labels of {unknown[0]!r:.80}; it may have them of {', '.join(counts)}.")
    else:
        rows = ", then ".join(f"{count} {kind}" if len(counts) > 1 else kind for kind, count in counts.items())
        labels = iter(_labels(groups, sum(counts.values()), f"rows ({rows})" if len(counts) > 1 else rows))
        by_kind = {kind: list(itertools.islice(labels, count)) for kind, count in counts.items()}
    labels = []
    for kind, count in counts.items():
        own = by_kind.get(kind)
        labels += [object() for _ in range(count)] if own is None else _labels(own, count, kind)
    numbers = iter(_number_labels(labels, "rows") if by_kind else range(len(labels)))
    return {kind: list(itertools.islice(numbers, count)) for kind, count in counts.items()}


def _labels(groups: Any, count: int, rows: str) -> list[Hashable]:
    """The labels as hashable values, one for each row."""
    hint = _label_hint(count, rows)
    if isinstance(groups, (str, bytes, Mapping)) or not hasattr(groups, "__iter__"):
        raise DataError(f"groups is a list of labels, not {groups!r:.80} of type {type(groups).__name__}; {hint}.")
    values = groups.tolist() if callable(getattr(groups, "tolist", None)) else list(groups)
    if not isinstance(values, list) or len(values) != count:
        how_many = len(values) if isinstance(values, list) else "no"
        raise DataError(f"groups has {how_many} labels for {count} {rows}; {hint}.")
    # A list is a row of a table of several columns.
    labels: list[Any] = [tuple(label) if isinstance(label, list) else label for label in values]
    for i, label in enumerate(labels):
        if label is None or label != label or not isinstance(label, Hashable):
            raise DataError(f"groups[{i}] is {label!r:.80}, which is not a label; {hint}.")
    return labels


def _label_hint(count: int, rows: str) -> str:
    return f"pass one label for each of the {count} {rows}, such as the number of its question"


def _number_labels(labels: list[Hashable], rows: str) -> list[int]:
    numbers: dict[Hashable, int] = {}
    numbered = [numbers.setdefault(label, len(numbers)) for label in labels]
    if len(numbers) < 2:
        raise DataError(
            f"groups puts all {len(labels)} {rows} into one group, which leaves nothing to compare; "
            f"{_label_hint(len(labels), rows)}."
        )
    return numbered
