"""What a sweep keeps between two runs: it goes on from exactly what it wrote, or says why not."""

import json
import os
import random
import sys

import pytest

import steerfn as sf
from steerfn.run import _checkpoint
from steerfn.values.files._document import MAX_BYTES

FOUND = {"0 0": "Ein schöner Tag.", "0 1": "", "3": [[-1.25, -3.5], [0.5, -0.0]]}


def Partial(path, identity):
    return _checkpoint.Partial(path, identity, lambda key, value: True)


def written(path, identity="a sweep", found=None):
    partial = Partial(path, identity)
    partial.add(FOUND if found is None else found)
    partial.write()
    return path


def test_it_goes_on_from_what_it_wrote(tmp_path):
    path = written(tmp_path / "s.json")
    assert Partial(path, "a sweep").results == FOUND
    with pytest.raises(sf.FileError, match="belongs to another sweep"):
        Partial(path, "another")


def test_no_damage_goes_unseen(tmp_path):
    path = written(tmp_path / "s.json")
    whole, refused = path.read_bytes(), 0
    for seed in range(400):
        rng, data = random.Random(seed), bytearray(whole)
        place = rng.randrange(len(data))
        match seed % 4:
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place] = rng.choice(b"0123456789abc,.")
            case 2:
                del data[place : place + rng.randrange(1, 9)]
            case 3:
                del data[place:]
        path.write_bytes(data)
        try:
            assert Partial(path, "a sweep").results == FOUND, seed
        except sf.FileError as error:
            refused += 1
            assert str(path) in str(error) and str(error).endswith(".")
    assert refused > 300


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '"text"', '{"format": "other"}', "[" * 100_000, "{", "", '{"a": NaN}']
)
def test_another_kind_of_json_is_refused_in_a_sentence(tmp_path, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(
        sf.FileError, match="is not the checkpoint of a sweep|Cannot continue from the checkpoint .*: it"
    ):
        Partial(path, "a sweep")
    assert path.read_text() == text


def test_what_is_no_regular_file_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(sf.FileError, match="it is a folder; name a file"):
        Partial(tmp_path, "a sweep")
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(sf.FileError, match="is not a regular file"):
            Partial(tmp_path / "pipe", "a sweep")
    with open(tmp_path / "s.json", "wb") as file:
        file.truncate(2**40)  # sparse: takes no space
    with pytest.raises(sf.FileError, match=f"has 1099511627776 bytes, more than the limit of {MAX_BYTES} bytes"):
        Partial(tmp_path / "s.json", "a sweep")
    with pytest.raises(sf.FileError, match="named by text or a Path, not by 3"):
        Partial(3, "a sweep")
    monkeypatch.setattr(_checkpoint, "MAX_BYTES", 200)
    with pytest.raises(sf.FileError, match="200 bytes; sweep fewer prompts"):
        written(tmp_path / "t.json", found={"0": "x" * 200})
    assert not (tmp_path / "t.json").exists()


def test_the_checksum_is_of_the_values(tmp_path):
    path = written(tmp_path / "s.json")
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=3))
    assert Partial(path, "a sweep").results == FOUND


@pytest.mark.parametrize("value", [5, None, [], {}, [["x"]], True])
def test_a_file_with_the_right_checksum_and_other_values_is_refused(tmp_path, value):
    path = written(tmp_path / "s.json", found={"0 0": "fine", "0 1": value})
    with pytest.raises(sf.FileError, match="under '0 1', which no sweep writes there; delete it"):
        _checkpoint.Partial(path, "a sweep")
