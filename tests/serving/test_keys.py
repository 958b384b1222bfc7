"""API keys fail closed: what is no key is refused at start, and a key names only its own vectors."""

import itertools

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
from families import build
from hypothesis import given
from hypothesis import strategies as st
from served import post, served
from steering import vector
from words import words

import steerfn as sf
from steerfn import serving
from steerfn.cli import _key_file, _serve
from steerfn.serving._keys import Allowed, Keys
from steerfn.serving._request_error import RequestError


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
    assert _key_file.api_keys(str(tmp_path / "keys")) == {"one": None, "two": ["safe", "other"]}
    monkeypatch.delenv("STEERFN_API_KEYS", raising=False)
    assert _key_file.api_keys(None) is None
    monkeypatch.setenv("STEERFN_API_KEYS", "one, two")
    assert _key_file.api_keys(None) == {"one": None, "two": None}
    for wrong in ("", ",", "one,,two"):
        monkeypatch.setenv("STEERFN_API_KEYS", wrong)
        with pytest.raises(sf.SteerError, match="would leave the server open"):
            _key_file.api_keys(None)


def test_ranges_and_admin_keys_of_the_command(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("one happy=0:2 calm *=-0.5:0.5\ntwo *\nthree\n")
    assert _key_file.api_keys(str(path)) == {
        "one": {"happy": (0.0, 2.0), "calm": None, "*": (-0.5, 0.5)}, "two": ["*"], "three": None,
    }  # fmt: skip
    for wrong in ("happy=", "happy=1", "happy=1:", "happy=a:b", "happy=1:2:3", "happy=1..2", "a=0:1 a", "a a"):
        path.write_text(f"good\nsecret {wrong}\n")
        with pytest.raises(sf.FileError, match="line 2") as caught:
            _key_file.api_keys(str(path))
        assert "secret" not in str(caught.value)
    monkeypatch.delenv("STEERFN_ADMIN_KEYS", raising=False)
    assert _key_file.admin_keys(None) is None
    monkeypatch.setenv("STEERFN_ADMIN_KEYS", "one, two")
    assert _key_file.admin_keys(None) == ["one", "two"]
    monkeypatch.setenv("STEERFN_ADMIN_KEYS", "one,")
    with pytest.raises(sf.SteerError, match="would let anyone change vectors"):
        _key_file.admin_keys(None)
    path.write_text("one\n\n two\n")
    assert _key_file.admin_keys(str(path)) == ["one", "two"]
    path.write_text("secret happy\n")
    with pytest.raises(sf.FileError, match="line 1, has something after the key") as caught:
        _key_file.admin_keys(str(path))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("api", "admin"),
    [
        (None, [""]), (None, "root"), (None, []), (None, {"root": None}), (None, [None]), (None, 5), (["a"], ["a"]),
        (["a"], [" a "]), (None, ["two words"]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_admin_key_is_refused_at_start(api, admin):
    with pytest.raises(sf.DataError, match="admin_keys"):
        serving.app(build("llama"), words(), api_keys=api, admin_keys=admin)


@pytest.mark.parametrize(
    "bounds",
    [(2, 1), (0,), (0, 1, 2), 5, "01", (0, float("inf")), (float("nan"), 1), (None, 1), (False, True), ("0", 1)],
)
def test_what_is_no_range_is_refused_at_start(bounds):
    with pytest.raises(sf.DataError, match="range of 'v' of api_keys\\[0\\] must be"):
        Keys({"key": {"v": bounds}})


def entries(*alphas, name="v", sha="1", operation="add"):
    return [{"vector": name, "alpha": alpha, "operation": operation, "sha256": sha} for alpha in alphas]


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=5), st.integers(-6, 6), st.integers(0, 9))
def test_no_sum_of_some_entries_leaves_the_range(alphas, low, width):
    """Scopes and layers decide which of them meet at a token, so that each set of them counts."""
    sums = {sum(some) for n in range(1, len(alphas) + 1) for some in itertools.combinations(alphas, n)}
    inside = all(low <= each <= low + width for each in sums)
    allowed = Keys({"key": {"v": (low, low + width)}}).identify(b"Bearer key").allowed
    assert allowed is not None
    try:
        allowed.check_strengths(entries(*map(float, alphas)))
        refused = False
    except RequestError as error:
        refused = True
        assert error.status == 403 and f"from {low} to {low + width}" in error.message
    assert refused != inside


def test_a_range_holds_for_a_copy_under_another_name_and_allows_no_ablation():
    allowed = Allowed({"v": (0.0, 1.0), "copy": None, "*": (-1.0, 0.0)})
    allowed.check_strengths([*entries(1.0), *entries(9.0, name="copy", sha="2"), *entries(-1.0, name="x", sha="3")])
    for wrong in (
        [*entries(1.0), *entries(0.5, name="copy")], entries(1.0, name="x"), entries(1.0, operation="ablate"),
        entries(0.5, 0.5, name="x"), entries(1.0 + 2**-52),
    ):  # fmt: skip
        with pytest.raises(RequestError, match="this key may add it with an alpha from ") as caught:
            allowed.check_strengths(wrong)
        assert (caught.value.status, caught.value.param) == (403, "steering")
    allowed.check_strengths(entries(1.0, name="copy", operation="ablate"))
    assert "is 1.0000000000000002, and" in str(caught.value)


def test_a_key_keeps_to_its_ranges_and_sees_them(tmp_path):
    for seed, name in enumerate(("happy", "calm", "other")):
        sf.save(vector(sf.resid_post[1], seed=seed), tmp_path / f"{name}.safetensors")
    keys = {"ranged": {"happy": (-1, 2), "calm": None}, "rest": {"*": (0, 0.5), "happy": (0, 1)}, "all": None}
    with served(serving.app(build("llama"), words(), tmp_path, api_keys=keys)) as address:

        def ask(key, *steering):
            body = {"prompt": "a", "max_tokens": 1, "steering": list(steering)}
            return post(address, "/v1/completions", body, headers={"authorization": f"Bearer {key}"})

        def happy(alpha, **more):
            return {"vector": "happy", "alpha": alpha, **more}

        def listed(key, path=""):
            found = requests.get(f"{address}/v1/vectors{path}", headers={"authorization": f"Bearer {key}"}).json()
            return {each["id"]: each.get("alpha_range") for each in found.get("data", [found])}

        assert listed("all") == {"happy": None, "calm": None, "other": None}
        assert listed("ranged") == {"happy": [-1.0, 2.0], "calm": None} and listed("ranged", "/happy")["happy"] == [
            -1,
            2,
        ]
        assert listed("rest") == {"happy": [0.0, 1.0], "calm": [0.0, 0.5], "other": [0.0, 0.5]}
        for good in ([happy(2)], [happy(-1), happy(2)], [happy(1), happy(1)], [{"vector": "calm", "alpha": 99}], []):
            assert ask("ranged", *good).status_code == 200
        for wrong in (
            [happy(2.5)], [happy(-1.5)], [happy(1), happy(1), happy(0.5)], [happy(3), happy(-1)],
            [happy(3, scope="prompt"), happy(-1, scope="generated")], [happy(1, operation="ablate")],
        ):  # fmt: skip
            found = ask("ranged", *wrong)
            error = found.json()["error"]
            assert found.status_code == 403 and error["code"] == "alpha_not_allowed" and error["param"] == "steering"
            assert "'happy'" in error["message"] and "an alpha from -1 to 2" in error["message"]
            assert ask("all", *wrong).status_code == 200
        assert "The alpha of the vector 'happy' is 2.5, and this key may" in ask("ranged", happy(2.5)).text
        assert ask("ranged", "other").status_code == 404 and ask("rest", "other").status_code == 403
        assert ask("rest", {"vector": "other", "alpha": 0.5}, happy(1)).status_code == 200
        headers = {"authorization": "Bearer ranged"}
        assert requests.get(f"{address}/v1/vectors/other", headers=headers).status_code == 404
