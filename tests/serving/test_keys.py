"""API keys fail closed: what is no key is refused at start, and a key names only its own vectors."""

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
from families import build
from served import post, served
from steering import vector
from words import words

import steerfn as sf
from steerfn import serving
from steerfn.cli import _serve


@pytest.mark.parametrize(
    "keys", [[""], "secret", b"secret", ["one", ""], ["  "], [None], [1], [], (), {}, ["two words"], ["schlüssel"], 5],
    ids=repr,
)  # fmt: skip
def test_what_is_no_key_never_opens_the_server(keys):
    with pytest.raises(sf.DataError, match="api_keys"):
        serving.app(build("llama"), words(), api_keys=keys)


def test_keys_are_trimmed_and_name_only_their_own_vectors(tmp_path):
    for name in ("safe", "other"):
        sf.save(vector(sf.resid_post[1]), tmp_path / f"{name}.safetensors")
    application = serving.app(build("llama"), words(), tmp_path, api_keys={" all\n": None, "few": ["safe"]})
    with served(application) as address:
        found = {}
        for key in ("all", "few"):
            head = {"authorization": f"Bearer {key}"}
            listed = requests.get(f"{address}/v1/vectors", headers=head).json()["data"]
            bodies = [{"prompt": "a", "max_tokens": 1, "steering": name} for name in ("safe", "other")]
            codes = [post(address, "/v1/completions", body, headers=head).status_code for body in bodies]
            found[key] = ([one["id"] for one in listed], codes)
        assert found == {"all": (["other", "safe"], [200, 200]), "few": (["safe"], [200, 404])}
        for wrong in ("", "Bearer", "Bearer ", "Bearer al", "all"):
            assert requests.get(f"{address}/v1/models", headers={"authorization": wrong}).status_code == 401


def test_lists_and_steering_of_the_command():
    assert _serve._several(["a,b", " c "]) == ["a", "b", "c"]
    assert _serve._steering("happy") == "happy" and _serve._steering('[{"vector": "v"}]') == [{"vector": "v"}]


def test_keys_of_the_command(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("one\n\n two safe other\n")
    assert _serve._keys(str(tmp_path / "keys")) == {"one": None, "two": ["safe", "other"]}
    monkeypatch.delenv("STEERFN_API_KEYS", raising=False)
    assert _serve._keys(None) is None
    monkeypatch.setenv("STEERFN_API_KEYS", "one, two")
    assert _serve._keys(None) == {"one": None, "two": None}
    for wrong in ("", ",", "one,,two"):
        monkeypatch.setenv("STEERFN_API_KEYS", wrong)
        with pytest.raises(sf.SteerError, match="would leave the server open"):
            _serve._keys(None)
