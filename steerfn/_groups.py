"""Groups: which rows belong together (the answers of one question, the turns of one conversation)."""

from collections.abc import Hashable, Mapping
from typing import Any

from steerfn._errors import DataError


def number_groups(groups: Any, count: int, rows: str = "texts") -> list[int]:
    """The group of each row as a number, counted from 0 in the order in which groups first appear.

    Rows of one group are not independent: cross-validation keeps them in one fold, and a test takes the group as its
    unit.

    Args:
        groups: one label for each row: a list, array, tensor or column of texts or numbers.
        count: how many rows there are.
        rows: what the error calls them.

    Raises:
        DataError: something else than a list of labels, another count, a label that is missing, or a single group.

    Example:
        >>> number_groups(["q1", "q1", "q7"], 3)
        [0, 0, 1]
    """
    wanted = f"pass one label for each of the {count} {rows}, such as the number of its question"
    if isinstance(groups, (str, bytes, Mapping)) or not hasattr(groups, "__iter__"):
        raise DataError(f"groups is a list of labels, not {groups!r:.80} of type {type(groups).__name__}; {wanted}.")
    labels = groups.tolist() if callable(getattr(groups, "tolist", None)) else list(groups)
    if not isinstance(labels, list) or len(labels) != count:
        given = len(labels) if isinstance(labels, list) else "no"
        raise DataError(f"groups has {given} labels for {count} {rows}; {wanted}.")
    numbers: dict[Hashable, int] = {}
    for i, label in enumerate(labels):
        if isinstance(label, list):  # a row of a table of several columns
            label = tuple(label)
        if label is None or label != label or not isinstance(label, Hashable):
            raise DataError(f"groups[{i}] is {label!r:.80}, which is no label; {wanted}.")
        numbers.setdefault(label, len(numbers))
    if len(numbers) < 2:
        raise DataError(f"groups puts all {count} {rows} into one group, which leaves nothing to compare; {wanted}.")
    return [numbers[tuple(label) if isinstance(label, list) else label] for label in labels]
