"""Vectors on the hub: the real client against a stand-in of the hub's endpoints, and no network."""

import hashlib
import json
import pickle

import pytest
import torch
from hub import stand_in

import steerfn as sf
from steerfn.values.files import HubAddress, fetch_folder, is_hub

V = sf.SteeringVector({sf.resid_post[3]: torch.arange(1.0, 9.0)}, {"method": "caa"})


@pytest.fixture
def hub(tmp_path):
    with stand_in(tmp_path / "cache") as hub:
        yield hub


def file_of(vector, tmp_path, suffix=".safetensors"):
    return sf.save(vector, tmp_path / f"vector{suffix}").read_bytes()


def test_what_is_pushed_is_what_is_loaded_with_its_commit_and_hash(hub):
    address = V.push_to_hub("user/happy", card="---\ntags:\n- steerfn\n---\n\nA card.")
    [(commit, files)] = hub.commits["user/happy"]
    assert address == f"hf://user/happy@{commit}/vector.safetensors"
    assert files["README.md"] == b"---\ntags:\n- steerfn\n---\n\nA card." and len(files) == 2
    for each in ("hf://user/happy", "hf://user/happy/vector.safetensors", "hf://user/happy@main", address):
        loaded = sf.load(each)
        assert loaded.metadata["hub"] == {
            "repo": "user/happy",
            "revision": commit,
            "file": "vector.safetensors",
            "sha256": hashlib.sha256(files["vector.safetensors"]).hexdigest(),
        }
        assert torch.equal(loaded[3], V[3]) and loaded.metadata["method"] == "caa"
    assert sf.files.describe("hf://user/happy")["metadata"] == {"method": "caa"}
    assert sf.files.describe("hf://user/happy")["format"] == "safetensors"


def test_a_revision_is_that_commit_and_a_second_file_is_of_the_same(hub):
    first = V.push_to_hub("user/happy", file="happy.json")
    second = (2 * V).push_to_hub("user/happy", file="happy.json")
    assert torch.equal(sf.load(first)[3], V[3]) and torch.equal(sf.load(second)[3], 2 * V[3])
    assert first != second and torch.equal(sf.load("hf://user/happy/happy.json")[3], 2 * V[3])


def test_without_a_connection_it_is_read_from_the_cache(hub):
    V.push_to_hub("user/happy")
    before = sf.load("hf://user/happy")
    hub.go_offline()
    hub.requests.clear()
    assert sf.load("hf://user/happy").identical(before) and not hub.requests
    with pytest.raises(sf.FileError, match=r"hf://user/sad': the hub client is offline .* load it once"):
        sf.load("hf://user/sad")


def test_a_hub_that_answers_nothing_is_no_connection(hub):
    V.push_to_hub("user/happy")
    before = sf.load("hf://user/happy")
    hub.hang_up = True
    assert sf.load("hf://user/happy").identical(before)
    with pytest.raises(sf.FileError, match=r"hf://user/sad': the hub cannot be reached \(.*check the connection"):
        sf.load("hf://user/sad")
    with pytest.raises(sf.FileError, match=r"^Cannot push to 'user/new': the hub cannot be reached"):
        V.push_to_hub("user/new")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://user/sad", "the repository user/sad is not there, or is private; check its name, or log in"),
        ("hf://user/happy@gone", "the repository user/happy has no revision 'gone'; name a branch"),
        (
            "hf://user/happy/x.safetensors",
            r"no file 'x.safetensors' \(it has 'a/b.safetensors'\); load 'hf://user/happy/a",
        ),
        ("hf://user/happy", "no file 'vector.safetensors'"),
        ("hf://user/happy/card.md", "does not end in a suffix that names a format"),
        ("hf://us--er/happy", "has a name that the hub does not allow"),
        ("hf://happy", "is not an address on the hub; write hf://user/name"),
        ("hf://user/happy/../../x.safetensors", "is not an address on the hub"),
        ("hf://user/happy@a/../b", "is not an address on the hub"),
    ],
)
def test_what_is_not_there_says_so_with_the_fix(hub, address, said):
    V.push_to_hub("user/happy", file="a/b.safetensors")
    with pytest.raises(sf.FileError, match=said):
        sf.load(address)


def test_a_gated_repository_says_where_to_ask(hub):
    V.push_to_hub("user/happy")
    hub.gated = True
    with pytest.raises(sf.FileError, match="user/happy is gated; ask for access on the page of user/happy"):
        sf.load("hf://user/happy")


def test_pitfall_21_files_of_the_hub_meet_the_walls_of_load(hub, tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path / "ran").write_text, ("x",)

    good = file_of(V, tmp_path)
    hub.commit(
        "user/bad", {"a.pt": pickle.dumps(Attack()), "a.safetensors": good[:-3], "a.gguf": pickle.dumps(Attack())}
    )
    for name, said in {"a.pt": "pass 'a.json'", "a.safetensors": "follow", "a.gguf": "Cannot load"}.items():
        with pytest.raises(sf.FileError, match=said):
            sf.load(f"hf://user/bad/{name}")
    document = json.loads(file_of(V, tmp_path, ".json"))
    hub.commit(
        "user/bad", {"a.json": json.dumps(document).encode(), document["tensors"]["file"]: pickle.dumps(Attack())}
    )
    with pytest.raises(sf.FileError, match="hf://user/bad/a.json"):
        sf.load("hf://user/bad/a.json")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_too_large_is_not_fetched(hub):
    V.push_to_hub("user/happy")
    hub.sizes["vector.safetensors"] = 2**40
    with pytest.raises(sf.FileError, match=f"it has {2**40} bytes, more than the limit"):
        sf.load("hf://user/happy")
    assert "GET" not in {method for method, path in hub.requests if "resolve" in path}


def test_a_folder_of_files_leaves_out_what_is_too_large_for_a_vector(hub):
    hub.commit("user/zoo", {"a/x.safetensors": b"x", "a/x.md": b"y", "model.safetensors": b"z", "other.bin": b"w"})
    hub.sizes["model.safetensors"] = 2**40
    folder, address = fetch_folder(HubAddress("user/zoo"), ".safetensors", ".md")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {"a/x.safetensors", "a/x.md"} and address.revision == hub.commits["user/zoo"][0][0]
    hub.hang_up = True
    assert fetch_folder(HubAddress("user/zoo"), ".safetensors", ".md") == (folder, address)
    with pytest.raises(sf.FileError, match="Cannot load 'hf://user/none': the hub cannot be reached"):
        fetch_folder(HubAddress("user/none"), ".safetensors")


def test_pushing_needs_a_name_a_login_and_a_vector_that_can_be_saved(hub):
    for name in ("happy", "user/happy@main", "user/happy/vector.safetensors", "user/ha ppy", ""):
        with pytest.raises(sf.FileError, match="does not name a repository; write 'user/name'"):
            V.push_to_hub(name)
    with pytest.raises(sf.FileError, match="`card` must be the text of a card, such as sf.card"):
        V.push_to_hub("user/happy", card=b"bytes")
    with pytest.raises(sf.FileError, match="suffix"):
        V.push_to_hub("user/happy", file="vector.txt")
    assert not hub.requests
    hub.token = "hf_other"
    with pytest.raises(sf.FileError, match=r"Cannot push to 'user/happy': the hub refuses it \(status 401\); log in"):
        V.push_to_hub("user/happy")
    with pytest.raises(sf.FileError, match=r"'hf://user/happy' is on the hub: call v.push_to_hub\('user/name'\)"):
        sf.save(V, "hf://user/happy")


def test_addresses_are_read_and_written_alike():
    for text in ("hf://a/b", "hf://a/b@main", "hf://a/b/c/d.gguf", "hf://a/b@refs%2Fpr%2F1/v.safetensors"):
        assert str(HubAddress.of(text)) == text
    assert HubAddress.of("hf://a/b@refs%2Fpr%2F1").revision == "refs/pr/1"
    assert HubAddress.of("folder/v.safetensors") is None and not is_hub(b"hf://a/b")
