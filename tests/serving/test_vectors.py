"""Vectors by name: one look at one file, what is ambiguous refused, what is passed over named."""

import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
from steering import vector

import steerfn as sf
from steerfn.serving._request_error import RequestError
from steerfn.serving._vectors import Shelf

SITE = sf.resid_post[1]


def test_pitfall_57_two_files_of_one_name_are_refused(model, tmp_path):
    sf.save(vector(SITE), tmp_path / "v.safetensors")
    sf.save(vector(SITE), tmp_path / "v.json")
    with pytest.raises(RequestError, match=r"'v' is ambiguous: the folder has v.safetensors and v.json") as caught:
        Shelf(tmp_path, model).get("v")
    assert caught.value.status == 409


def test_a_file_replaced_with_the_same_size_and_time_is_read_again(model, tmp_path):
    path, shelf, found = tmp_path / "v.safetensors", Shelf(tmp_path, model), []
    for seed in range(4):
        sf.save(vector(SITE, seed=seed), path)
        os.utime(path, ns=(10**18, 10**18))
        found.append((shelf.get("v").sha256, sf.files.describe(path)["sha256"], path.stat().st_size))
    assert [one for one, _, _ in found] == [two for _, two, _ in found] and len({one for one, *_ in found}) == 4
    assert len({size for *_, size in found}) == 1


def test_a_name_is_looked_up_without_a_look_at_the_others_and_read_once(model, tmp_path, monkeypatch):
    sf.save(vector(SITE), tmp_path / "v.safetensors")
    monkeypatch.setattr("steerfn.serving._vectors.SETTLED", -1)
    shelf, reads = Shelf(tmp_path, model), []
    monkeypatch.setattr("steerfn.serving._vectors.load", lambda path: reads.append(path) or sf.load(path))
    monkeypatch.setattr(Path, "iterdir", lambda _: pytest.fail("the folder was listed"))
    assert len({shelf.get("v").sha256 for _ in range(3)}) == 1 and len(reads) == 1


def test_a_served_vector_says_what_it_was_made_from(model, tmp_path):
    v = vector(SITE).with_metadata(model=sf.values.fingerprint(model, weights=True), method="mean_difference")
    sf.save(v, tmp_path / "v.safetensors")
    assert Shelf(tmp_path, model).get("v").vector.identical(v)


def test_a_large_folder_is_listed_in_time_that_grows_as_it_does(model, tmp_path, monkeypatch):
    sf.save(vector(SITE), tmp_path / "v0.safetensors")
    for i in range(1, 500):
        os.link(tmp_path / "v0.safetensors", tmp_path / f"v{i}.safetensors")
    shelf, looks, resolve = Shelf(tmp_path, model), [], Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path, strict=False: looks.append(path) or resolve(path, strict))
    names, passed = shelf.listing()
    for name in names[:50]:
        shelf.get(name)
    assert len(names) == 500 and not passed
    assert len(looks) == 500 + 50, "each file is looked at once, and once more where it is asked for"


def test_what_is_passed_over_is_named_with_the_reason(model, tmp_path):
    sf.save(vector(SITE), tmp_path / "good.json")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "two words.gguf").write_text("")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "out.safetensors").symlink_to("/etc/hostname")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "none")
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    (tmp_path / "link.json").symlink_to(tmp_path / "good.json")
    names, passed = Shelf(tmp_path, model).listing()
    assert names == ["good", "link"]
    assert {file: reason.split()[0:4] for file, reason in passed.items()} == {
        "notes.txt": ["not", "a", "vector", "file:"], "two words.gguf": ["its", "name", "has", "other"],
        "folder.json": ["not", "a", "regular", "file"], "out.safetensors": ["a", "link", "that", "leads"],
        "gone.safetensors": ["a", "link", "that", "leads"], "loop.safetensors": ["a", "link", "that", "leads"],
    }  # fmt: skip
    for name in ("out", "gone", "loop", "folder", "two words", "../good", "good.json", "."):
        with pytest.raises(RequestError, match="There is no vector"):
            Shelf(tmp_path, model).get(name)


def test_links_of_a_snapshot_in_the_hubs_cache_are_followed(model, tmp_path):
    repository = tmp_path / "models--org--vectors"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    sf.save(vector(SITE), tmp_path / "v.safetensors")
    (tmp_path / "v.safetensors").rename(repository / "blobs" / "4f5e")
    (snapshot / "v.safetensors").symlink_to("../../blobs/4f5e")
    (snapshot / "out.safetensors").symlink_to("/etc/hostname")
    names, passed = Shelf(snapshot, model).listing()
    assert names == ["v"] and list(passed) == ["out.safetensors"]
    assert Shelf(snapshot, model).get("v").vector.sites == (SITE,)
