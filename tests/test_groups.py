"""Labels of groups: what is one, and what is refused before anything runs."""

import numpy as np
import pytest
import torch

from steerfn._errors import DataError
from steerfn._groups import number_groups


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


def test_a_column_of_a_data_frame_is_a_list_of_labels():
    pandas = pytest.importorskip("pandas")
    assert number_groups(pandas.Series(["x", "x", "y"], index=[5, 3, 1]), 3) == [0, 0, 1]
