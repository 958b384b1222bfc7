"""Labels of groups: what is one, and what is refused before anything runs."""

import numpy as np
import pytest
import torch

from steerfn.values._errors import DataError
from steerfn.values._groups import number_groups, number_groups_by_kind


@pytest.mark.parametrize(
    "labels",
    [
        ["b", "b", "a"],
        (7, 7, 3),
        np.array([7, 7, 3]),
        torch.tensor([7, 7, 3]),
        [(1, 2), (1, 2), (1, 3)],
    ],
)
def test_labels_of_any_kind_are_numbered_by_first_appearance(labels):
    assert number_groups(labels, 3) == [0, 0, 1]


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ("ab", "list of labels"),
        (5, "list of labels"),
        ({"a": 1}, "list of labels"),
        ([1, 2, 3], "3 labels for 2"),
        ([1, None], r"groups\[1\]"),
        ([1, float("nan")], r"groups\[1\]"),
        ([1, {}], r"groups\[1\]"),
        ([4, 4], "one group"),
    ],
)
def test_what_is_no_grouping_is_refused(labels, what):
    with pytest.raises(DataError, match=what):
        number_groups(labels, 2)


COUNTS = {"harmful": 2, "harmless": 3}


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (None, ([0, 1], [2, 3, 4])),
        (["a", "b", "b", "c", "c"], ([0, 1], [1, 2, 2])),
        ({"harmless": np.array([7, 7, 3])}, ([0, 1], [2, 2, 3])),
        ({"harmful": ["a", "b"], "harmless": ["b", "c", "c"]}, ([0, 1], [1, 2, 2])),  # a label is one group everywhere
    ],
)
def test_rows_of_several_kinds_are_numbered_together(labels, numbers):
    assert number_groups_by_kind(labels, COUNTS) == dict(zip(COUNTS, numbers, strict=True))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (["a", "b"], r"2 labels for 5 rows \(2 harmful, then 3 harmless\)"),
        ({"harmless": ["a"]}, "1 labels for 3 harmless"),
        ({"hamless": ["a"]}, "labels of 'hamless'; it may have them of harmful, harmless"),
        ({"harmful": [1, 1], "harmless": [1, 1, 1]}, "one group"),
        ("abcde", "list of labels"),
    ],
)
def test_what_is_no_grouping_of_several_kinds_is_refused(labels, what):
    with pytest.raises(DataError, match=what):
        number_groups_by_kind(labels, COUNTS)


def test_a_column_of_a_data_frame_is_a_list_of_labels():
    pandas = pytest.importorskip("pandas")
    assert number_groups(pandas.Series(["x", "x", "y"], index=[5, 3, 1]), 3) == [0, 0, 1]
