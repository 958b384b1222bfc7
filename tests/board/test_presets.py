"""Where the page's vectors come from, and where those that it makes go."""

import pytest
from families import build
from small_zoo import fill
from steering import vector

import steerfn as sf
from steerfn.board import Presets
from steerfn.board._report_evidence import ReportEvidence

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


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("no vector")
    for name in ("up.safetensors", "notes.txt"):
        with pytest.raises(sf.FileError, match="is a file, and the page takes a folder"):
            Presets(tmp_path / name, build("llama"))


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", ".hidden", "a b", "a.safetensors"])
def test_a_name_that_is_no_files_is_refused(tmp_path, name):
    presets = Presets(tmp_path, build("llama"))
    with pytest.raises(sf.FileError, match="is not a name for a vector"):
        presets.save(name, V)
    presets.save("up", V)
    with pytest.raises(sf.FileError, match="a vector 'up' already"):
        presets.save("up", V)
    assert [each.name for each in tmp_path.iterdir()] == ["up.safetensors"]


def test_the_zoos_vectors_stand_beside_the_folders(tmp_path, monkeypatch):
    model = build("llama")
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr("steerfn.zoo._entries.OURS", fill(tmp_path / "zoo", model))
    presets = Presets(tmp_path / "mine", model)
    presets.save("calm", V)
    assert presets.choices() == [
        ("calm", "calm"), ("zoo:calm, effect shown", "zoo:calm"), ("zoo:plain, no report", "zoo:plain"),
        ("zoo:rude, no effect shown", "zoo:rude"),
    ]  # fmt: skip
    assert {name: presets.alpha(name) for name in presets.names()} == {
        "calm": 1.0, "zoo:calm": 1.5, "zoo:plain": 1.0, "zoo:rude": -2.5,
    }  # fmt: skip
    assert presets.get("calm").identical(V) and presets.get("zoo:calm").identical(sf.zoo.load("calm", model=model))
    assert list(presets.files()) == ["calm"]
    for name in ("zoo:foreign", "zoo:gone", "zoo:../mine/calm"):
        with pytest.raises(sf.DataError, match="there are calm, zoo:calm, zoo:plain, zoo:rude"):
            presets.get(name)
    with pytest.raises(sf.FileError, match="is not a name for a vector"):
        presets.save("zoo:calm", V)


def test_a_name_that_two_models_vectors_have_is_told_apart_by_its_folder(tmp_path, monkeypatch):
    model = build("llama")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        fill(tmp_path / folder, model)
    (tmp_path / "b" / "rude.safetensors").unlink()
    monkeypatch.setattr("steerfn.zoo._entries.OURS", tmp_path)
    assert Presets(None, model).names() == ["zoo:a/calm", "zoo:b/calm", "zoo:a/plain", "zoo:b/plain", "zoo:rude"]


def test_what_comes_with_the_package_is_offered_for_its_model(demo):
    presets = Presets(None, demo[0])
    evidence = {f"zoo:{each.name}": each.evidence for each in sf.zoo.list(model=demo[0])}
    assert presets.names() == sorted(evidence) and "zoo:refusal" in evidence
    for name, said in evidence.items():
        told = ReportEvidence.of(presets.get(name).metadata["evidence"])
        assert told.alpha == said["alpha"] and told.headline.endswith(said["headline"])
        assert (told.verdict == "effect shown") == (said["verdict"] == "shown")


@pytest.mark.parametrize(
    "said",
    [None, 3, [], {}, {"alpha": 2.0}, {"alpha": 2.0, "verdict": ["shown"]}, {"alpha": 2.0, "verdict": "great"},
     {"alpha": float("nan"), "verdict": "shown"}, {"alpha": True, "verdict": "shown"},
     {"alpha": 10**400, "verdict": "shown"}],
)  # fmt: skip
def test_a_file_that_says_something_else_has_no_report(said):
    assert ReportEvidence.of(said) == ReportEvidence() == (1.0, "no report", "")


def test_a_folder_that_is_not_there_yet_is_said(tmp_path):
    presets = Presets(tmp_path / "new", build("llama"))
    assert presets.note() == f"There is no folder '{tmp_path / 'new'}' yet; the first vector that is saved makes it."
    presets.save("up", V)
    assert presets.note() == "" == Presets(None, build("llama")).note()
