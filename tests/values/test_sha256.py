"""Hashes of values and of files."""

import hashlib
import json

import numpy as np
import pytest
import torch

from steerfn.values import file_sha256, json_sha256


def test_a_value_is_known_by_its_sorted_json():
    value = {"b": [1, 2.5], "a": "\udcff ä"}
    expected = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    assert json_sha256(value) == json_sha256(dict(reversed(value.items()))) == expected
    assert json_sha256(np.arange(3)) == json_sha256(torch.arange(3)) == json_sha256([0, 1, 2]) == json_sha256((0, 1, 2))
    assert json_sha256({"a": 1}) != json_sha256({"a": 2})
    assert json_sha256(torch.float32) == json_sha256("torch.float32")


@pytest.mark.parametrize("size", [0, 1, (1 << 22) + 5])
def test_a_file_is_known_by_its_bytes(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    assert file_sha256(path) == file_sha256(str(path)) == hashlib.sha256(bytes(size)).hexdigest()
