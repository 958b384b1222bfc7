"""Metadata: an immutable JSON value."""

import copy
import pickle
import re

import numpy as np
import pytest

import steerfn as sf
from steerfn.values import Metadata

VALUES = {"model": "a/b", "counts": [3, 4], "nested": {"x": None, "é": 0.1}, "flag": True, "big": 2**70}


def test_it_is_a_mapping_of_json_values():
    meta = Metadata(VALUES)
    assert dict(meta) == VALUES and len(meta) == 5 and set(meta) == set(VALUES)
    assert meta["nested"]["é"] == 0.1 and meta.get("nothing") is None and "flag" in meta
    assert dict(Metadata()) == dict(Metadata(None)) == {}
    assert repr(Metadata({"a": [1]})) == "Metadata({'a': [1]})"
    with pytest.raises(KeyError, match="nothing"):
        meta["nothing"]


def test_equality_and_hash():
    meta = Metadata(VALUES)
    other = Metadata(dict(reversed(VALUES.items())))
    assert meta == other and hash(meta) == hash(other) and meta == VALUES and meta != {} and meta != 3
    assert Metadata({"a": 1}) == Metadata({"a": 1.0}) == Metadata({"a": True})
    assert hash(Metadata({"a": 1})) == hash(Metadata({"a": 1.0})) == hash(Metadata({"a": True}))


def test_nothing_outside_changes_it():
    values = {"counts": [1, 2], "nested": {"a": 1}}
    meta = Metadata(values)
    values["counts"].append(3)
    values["new"] = 1
    meta["counts"].append(4)
    meta["nested"]["a"] = 2
    assert dict(meta) == {"counts": [1, 2], "nested": {"a": 1}}
    with pytest.raises(TypeError):
        meta["counts"] = 1
    with pytest.raises(AttributeError):
        meta.model = 1


def test_copies_and_pickles():
    meta = Metadata(VALUES)
    for back in (copy.copy(meta), copy.deepcopy(meta), pickle.loads(pickle.dumps(meta)), Metadata(meta)):
        assert back == meta and hash(back) == hash(meta)


@pytest.mark.parametrize(
    "values",
    [{"a": float("nan")}, {"a": float("inf")}, {"a": {1, 2}}, {"a": object()}, {"a": b"b"}, {"a": [sf.resid_post[0]]}],
)
def test_what_json_cannot_hold_is_refused(values):
    with pytest.raises(
        sf.DataError, match=r"^Metadata holds JSON values only \(text, numbers, lists, mappings\): .*\.$"
    ):
        Metadata(values)


def test_cycles_are_refused():
    loop = {}
    loop["me"] = loop
    with pytest.raises(sf.DataError, match="Metadata holds JSON values only"):
        Metadata(loop)


@pytest.mark.parametrize("values", [{1: "a"}, [("a", 1)], "text", 3])
def test_what_is_no_mapping_from_names_is_refused(values):
    text = f"Metadata is a mapping from names to JSON values, not {values!r}."
    with pytest.raises(sf.DataError, match=f"^{re.escape(text)}$"):
        Metadata(values)


def test_an_access_parses_one_value_and_never_the_whole(monkeypatch):
    """Every steered request looks at metadata: reading all of it is linear in its size."""
    metadata = Metadata({f"k{i}": "x" * 20 for i in range(4000)})
    parsed = []
    monkeypatch.setattr("steerfn.values._metadata.json.loads", lambda text: parsed.append(len(text)) or text)
    assert len(list(metadata.items())) == 4000 and sum(parsed) == 4000 * 22


@pytest.mark.parametrize("values", [{f"k{i}": 0 for i in range(10_001)}, {"k" * 1001: 0}])
def test_keys_are_bounded(values):
    with pytest.raises(sf.DataError, match="Metadata has 10000 keys of 1000 characters at most"):
        Metadata(values)


def test_numbers_of_numpy_are_numbers():
    given = {"seed": np.int64(3), "scale": np.float32(0.5), "flag": np.True_, "list": np.arange(2)}
    assert Metadata(given) == {"seed": 3, "scale": 0.5, "flag": True, "list": [0, 1]}
