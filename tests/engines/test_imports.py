"""What people have from other libraries becomes a vector here."""

import types

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
    with pytest.raises(sf.DataError, match="no site of the residual stream"):
        sf.from_steering_vectors(theirs(layer_type="input_layernorm", layer_activations={4: torch.ones(8)}))


@pytest.mark.parametrize("wrong", [None, 3, {}, theirs(directions={}), theirs(directions={"a": np.ones(3)})])
def test_something_else_is_refused(wrong):
    with pytest.raises(sf.DataError, match="repeng ControlVector"):
        sf.from_repeng(wrong)


def test_pt_files_of_every_shape(tmp_path):
    row, rows = torch.randn(8), torch.randn(3, 8)
    torch.save(row, tmp_path / "vec_layer_13_llama.pt")
    assert sf.from_pt(tmp_path / "vec_layer_13_llama.pt")[sf.resid_post[13]].equal(row)
    torch.save(row, tmp_path / "v.pt")
    assert sf.from_pt(tmp_path / "v.pt", layer=sf.attn_out[2])[sf.attn_out[2]].equal(row)
    with pytest.raises(sf.DataError, match="does not say of which layer"):
        sf.from_pt(tmp_path / "v.pt")
    torch.save(rows, tmp_path / "rows.pt")
    assert sf.from_pt(tmp_path / "rows.pt")[sf.resid_post[2]].equal(rows[2])
    assert sf.from_pt(tmp_path / "rows.pt", layer=[4, 6, 9])[sf.resid_post[9]].equal(rows[2])
    with pytest.raises(sf.DataError, match="3 directions and layer names 2 sites"):
        sf.from_pt(tmp_path / "rows.pt", layer=[4, 6])
    torch.save({"layer_4": row[None], -1: row}, tmp_path / "mapping.pt")
    assert sf.from_pt(tmp_path / "mapping.pt").sites == (sf.resid_post[-1], sf.resid_post[4])


class Hostile:
    def __reduce__(self):
        return print, ("run",)


def test_pitfall_21_a_pt_file_runs_nothing(tmp_path, capsys):
    torch.save({"v": Hostile()}, tmp_path / "v.pt")
    with pytest.raises(sf.FileError, match="could run code"):
        sf.from_pt(tmp_path / "v.pt")
    (tmp_path / "w.pt").write_bytes(b"nonsense")
    with pytest.raises(sf.FileError):
        sf.from_pt(tmp_path / "w.pt")
    with pytest.raises(sf.FileError, match="check the name"):
        sf.from_pt(tmp_path / "none.pt")
    assert "run" not in capsys.readouterr().out


def test_what_is_no_vector_of_theirs_is_named_in_the_error():
    with pytest.raises(sf.DataError, match="from_repeng takes a repeng ControlVector, not 3 of type int"):
        sf.from_repeng(3)
    with pytest.raises(sf.DataError, match="takes a steering_vectors.SteeringVector, not v of type str"):
        sf.from_steering_vectors("v")
