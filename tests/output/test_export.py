"""JSON that every reader takes, and text files that appear whole or not at all."""

import dataclasses
import json
import math
from collections import OrderedDict

import numpy as np
import pytest

import steerfn as sf
from steerfn.output._export import as_json, finite, write_text


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    inner: object = None


def test_what_json_has_no_number_for_is_none_at_any_depth():
    value = {
        "a": [1.5, math.nan, (math.inf, -math.inf)],
        "b": Point(math.nan, {"c": np.array([[1.0, np.nan]])}),
        3: True,
    }
    assert finite(value) == {"a": [1.5, None, [None, None]], "b": {"x": None, "inner": {"c": [[1.0, None]]}}, "3": True}


def test_numbers_of_numpy_are_numbers_of_python():
    found = finite([np.float32(0.5), np.int64(3), np.bool_(True), np.arange(2), OrderedDict(a=np.float64(2))])
    assert found == [0.5, 3, True, [0, 1], {"a": 2.0}]
    assert [type(each) for each in found[:3]] == [float, int, bool]
    assert json.loads(as_json({"a": found, "b": math.nan, "c": "é\ud800"})) == {"a": found, "b": None, "c": "é\ud800"}


def test_the_value_itself_does_not_change():
    value = {"a": [math.nan]}
    finite(value)
    assert math.isnan(value["a"][0])


def test_a_file_is_utf8_and_holds_what_can_be_encoded(tmp_path):
    path = write_text(tmp_path / "a.b.txt", "é 日\ud800!", "The table")
    assert path == tmp_path / "a.b.txt" and path.read_bytes() == "é 日?!".encode()
    assert [each.name for each in tmp_path.iterdir()] == ["a.b.txt"]


def test_a_file_that_cannot_be_written_is_one_sentence_and_leaves_what_was_there(tmp_path):
    with pytest.raises(sf.FileError) as caught:
        write_text(tmp_path / "nowhere" / "x.json", "new", "The table")
    place = tmp_path / "nowhere" / "x.json"
    there = f"there is no folder '{place.parent}'; create it first."
    assert str(caught.value) == f"The table cannot be written to '{place}': {there}"
    (tmp_path / "folder").mkdir()
    with pytest.raises(sf.FileError, match="The page cannot be written to .*folder': it is a folder"):
        write_text(tmp_path / "folder", "new", "The page")
    assert (tmp_path / "folder").is_dir() and [each.name for each in tmp_path.iterdir()] == ["folder"]
