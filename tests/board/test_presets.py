"""Where the page's vectors come from, and where those that it makes go."""

import pytest
from families import build
from steering import vector

import steerfn as sf
from steerfn.board import Presets

V = vector(sf.resid_post[1])


def test_a_folder_is_read_as_it_is_now(tmp_path):
    presets = Presets(tmp_path / "new", build("llama"))
    assert presets.names() == [] and presets.files() == {}
    with pytest.raises(sf.DataError, match="no vector 'happy'; there are none yet"):
        presets.get("happy")
    assert presets.save("happy", V) == str(tmp_path / "new" / "happy.safetensors")
    assert presets.names() == ["happy"] and presets.get("happy").identical(V)
    assert presets.files() == {"happy": str(tmp_path / "new" / "happy.safetensors")}
    (tmp_path / "new" / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(sf.DataError, match="'broken' cannot be served"):
        presets.get("broken")


def test_vectors_in_memory_have_names_and_no_files():
    for vectors, names in ((V, ["vector-1"]), ([V, V], ["vector-1", "vector-2"]), ({"up": V}, ["up"]), (None, [])):
        presets = Presets(vectors, build("llama"))
        assert presets.names() == names and presets.files() == dict.fromkeys(names)
    assert presets.save("new", V) == "in memory as 'new'" and presets.get("new") is V
    with pytest.raises(sf.DataError, match="a folder, a SteeringVector, a list of them, or a mapping"):
        Presets(3, build("llama"))
    with pytest.raises(sf.ModelError):
        Presets({"wide": vector(sf.resid_post[1], width=8)}, build("llama"))


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", ".hidden", "a b", "a.safetensors"])
def test_a_name_that_is_no_files_is_refused(tmp_path, name):
    presets = Presets(tmp_path, build("llama"))
    with pytest.raises(sf.FileError, match="is not a name for a vector"):
        presets.save(name, V)
    presets.save("up", V)
    with pytest.raises(sf.FileError, match="a vector 'up' already"):
        presets.save("up", V)
    assert [each.name for each in tmp_path.iterdir()] == ["up.safetensors"]
