"""What people have from other libraries becomes a vector here."""

import collections
import io
import os
import sys
import time
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
import torch

import steerfn as sf


def theirs(**fields):
    return types.SimpleNamespace(**fields)


def test_repeng_by_layer():
    directions = {5: np.arange(8, dtype=np.float32), 3: np.ones(8, np.float32)}
    v = sf.from_repeng(theirs(model_type="llama", directions=directions))
    assert v.sites == (sf.resid_post[3], sf.resid_post[5])
    assert torch.equal(v[sf.resid_post[5]], torch.arange(8.0))
    assert v.metadata["imported"] == {"from": "repeng", "model_type": "llama"}


@pytest.mark.parametrize(
    ("kind", "site"), [("decoder_block", sf.resid_post), ("self_attn", sf.attn_out), ("mlp", sf.mlp_out)]
)
def test_steering_vectors_by_layer_type(kind, site):
    direction = torch.randn(8)
    v = sf.from_steering_vectors(theirs(layer_type=kind, layer_activations={4: direction}))
    assert v.sites == (site[4],) and torch.equal(v[site[4]], direction)


def test_a_layer_type_that_is_no_site_is_refused():
    with pytest.raises(sf.DataError, match="not a site of the residual stream"):
        sf.from_steering_vectors(theirs(layer_type="input_layernorm", layer_activations={4: torch.ones(8)}))


@pytest.mark.parametrize("wrong", [None, 3, {}, theirs(directions={}), theirs(directions={"a": np.ones(3)})])
def test_something_else_is_refused(wrong):
    with pytest.raises(sf.DataError, match="repeng ControlVector"):
        sf.from_repeng(wrong)


def test_pt_files_of_every_shape(tmp_path):
    row, rows = torch.randn(8), torch.randn(3, 8)
    torch.save(row, tmp_path / "vec_layer_13_llama.pt")
    assert sf.files.from_pt(tmp_path / "vec_layer_13_llama.pt")[sf.resid_post[13]].equal(row)
    torch.save(row, tmp_path / "v.pt")
    assert sf.files.from_pt(tmp_path / "v.pt", layer=sf.attn_out[2])[sf.attn_out[2]].equal(row)
    with pytest.raises(sf.DataError, match="does not say of which layer"):
        sf.files.from_pt(tmp_path / "v.pt")
    torch.save(rows, tmp_path / "rows.pt")
    assert sf.files.from_pt(tmp_path / "rows.pt")[sf.resid_post[2]].equal(rows[2])
    assert sf.files.from_pt(tmp_path / "rows.pt", layer=[4, 6, 9])[sf.resid_post[9]].equal(rows[2])
    with pytest.raises(sf.DataError, match="3 directions and layer names 2 sites"):
        sf.files.from_pt(tmp_path / "rows.pt", layer=[4, 6])
    torch.save([row, rows[1]], tmp_path / "list.pt")
    assert sf.files.from_pt(tmp_path / "list.pt")[sf.resid_post[1]].equal(rows[1])
    assert sf.files.from_pt(tmp_path / "list.pt", layer=[3, 5])[sf.resid_post[5]].equal(rows[1])
    parameters = collections.OrderedDict({3: torch.nn.Parameter(row), 4: row.tolist(), 5: rows[0], 6: rows[0]})
    torch.save(parameters, tmp_path / "parameters.pt")
    found = sf.files.from_pt(tmp_path / "parameters.pt")
    assert found[sf.resid_post[3]].equal(row) and found[sf.resid_post[4]].equal(row)
    assert found[sf.resid_post[5]].equal(rows[0]) and found[sf.resid_post[6]].equal(rows[0])
    torch.save({"layer_4": row[None], -1: row}, tmp_path / "mapping.pt")
    assert sf.files.from_pt(tmp_path / "mapping.pt").sites == (sf.resid_post[-1], sf.resid_post[4])


class Hostile:
    def __reduce__(self):
        return print, ("run",)


def test_pitfall_21_a_pt_file_runs_nothing(tmp_path, capsys):
    torch.save({"v": Hostile()}, tmp_path / "v.pt")
    with pytest.raises(sf.FileError, match="may be meant to run code"):
        sf.files.from_pt(tmp_path / "v.pt")
    (tmp_path / "w.pt").write_bytes(b"nonsense")
    with pytest.raises(sf.FileError):
        sf.files.from_pt(tmp_path / "w.pt")
    with pytest.raises(sf.FileError, match="check the name"):
        sf.files.from_pt(tmp_path / "none.pt")
    assert "run" not in capsys.readouterr().out


def test_what_is_no_vector_of_theirs_is_named_in_the_error():
    with pytest.raises(sf.DataError, match="from_repeng takes a repeng ControlVector, not 3 of type int"):
        sf.from_repeng(3)
    with pytest.raises(sf.DataError, match="takes a steering_vectors.SteeringVector, not v of type str"):
        sf.from_steering_vectors("v")


def pickled(code):
    """A `.pt` archive with a pickle of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", code)
    return buffer.getvalue()


def itself():
    found = []
    found.append(found)
    return found


def doubled(times):
    found = [torch.ones(8)]
    for _ in range(times):
        found = [found, found]
    return found


SHARED = torch.ones(1000)
HOSTILE = {
    "an expanded view": torch.ones(1).expand(10**9),
    "overlapping rows": torch.ones(1000).as_strided((900, 100), (1, 1)),
    "one storage a thousand times": [SHARED] * 1000,
    "more rows than there are layers": torch.ones(60_000, 1),
    "a list of itself": itself(),
    "doubled forty times": doubled(40),
    "nested": [[[[[[[[[[torch.ones(8)]]]]]]]]]],
    "integers": {1: torch.ones(8, dtype=torch.int64)},
    "numbers": 3.5,
    "text": {"layer_1": "a"},
    "no layer": {"a": torch.ones(8)},
    "a layer twice": {"a_1": torch.ones(8), 1: torch.ones(8)},
    "an empty tensor": torch.ones(0),
    "nothing": None,
    "an empty list": [],
    "ragged": [torch.ones(8), torch.ones(9)],
    "not finite": {1: torch.full((8,), torch.nan)},
    "a tuple of itself, doubled, as a storage": pickled(b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"Q."),
    "a tuple doubled, as arguments": pickled(
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)" + b"q\x00h\x00\x86" * 60 + b"R."
    ),
    "many empty lists": pickled(b"\x80\x02(" + b"]" * 200_000 + b"t."),
    "a pickle in a pickle": b"\x80\x02]q\x00h\x00a.",
    "nothing at all": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pt_files_are_refused_in_bounded_time_and_memory(tmp_path, what):
    path, value = tmp_path / "vec_layer_3.pt", HOSTILE[what]
    path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(sf.SteerError) as caught:
            sf.files.from_pt(path)
        assert time.process_time() - start < 10
        assert tracemalloc.get_traced_memory()[1] < 100 * path.stat().st_size + 2**20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    for path, what in ((tmp_path, "not a regular file"), ("a\0b", "null"), (3.5, "named by 3.5")):
        with pytest.raises(sf.FileError, match=what):
            sf.files.from_pt(path)
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "layer_1.pt")
        with pytest.raises(sf.FileError, match="not a regular file; pass a file that torch.save wrote"):
            sf.files.from_pt(tmp_path / "layer_1.pt")


def test_a_pt_file_has_a_largest_size(tmp_path):
    with open(tmp_path / "layer_1.pt", "wb") as file:
        file.truncate(2**40)  # sparse: takes no space
    with pytest.raises(sf.FileError, match="it has 1099511627776 bytes, more than the limit of 268435456 bytes"):
        sf.files.from_pt(tmp_path / "layer_1.pt")
