"""Who may come in: known hosts, no page of another site, and those with a key."""

import pytest

pytest.importorskip("gradio", reason="Gradio is not installed")
import requests
from families import build
from served import served
from words import words

import steerfn as sf
from steerfn import board
from steerfn.board._serve import _name_of


@pytest.fixture(scope="module")
def page():
    return board.Page(
        build("llama"), words(template=True), board.Presets(None, build("llama")), board.Source(), board.State()
    )


@pytest.fixture(scope="module")
def address(page):
    with served(board.app(page, board.check_keys("127.0.0.1", None), ["board.example"])) as where:
        yield where


@pytest.fixture(scope="module")
def locked(page):
    with served(board.app(page, board.check_keys("0.0.0.0", {"a-long;key": None}))) as where:
        yield where


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"Host": "localhost:1"}, 200), ({"Host": "board.example"}, 200), ({"Host": "evil.example"}, 400),
        ({"Host": ""}, 400), ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200), ({"Origin": "http://localhost:2"}, 403),
    ],
)  # fmt: skip
def test_hosts_and_other_sites(address, headers, status):
    for path in ("/", "/config", "/gradio_api/info"):
        assert requests.get(f"{address}{path}", headers=headers, timeout=60).status_code == status


def test_the_page_may_load_nothing_from_elsewhere(address):
    answer = requests.get(address, timeout=60)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http:" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_without_a_key_there_is_a_form_and_nothing_else(locked):
    for path in ("/", "/config", "/gradio_api/info", "/assets/x.js"):
        answer = requests.get(f"{locked}{path}", timeout=60)
        assert answer.status_code == 401 and "asks for a key" in answer.text
    assert requests.post(f"{locked}/gradio_api/queue/join", json={}, timeout=60).status_code == 401


def test_a_key_opens_the_page_and_leads_back(locked):
    visitor = requests.Session()
    form = {"key": "a-long;key", "back": "/?view=look"}
    wrong = visitor.post(f"{locked}/key", data=form | {"key": "another"}, timeout=60)
    assert wrong.status_code == 401 and "not one of those" in wrong.text and not visitor.cookies
    right = visitor.post(f"{locked}/key", data=form, timeout=60, allow_redirects=False)
    assert right.status_code == 303 and right.headers["location"] == "/?view=look"
    assert "HttpOnly" in right.headers["set-cookie"] and "SameSite=Strict" in right.headers["set-cookie"]
    assert visitor.get(f"{locked}/config", timeout=60).status_code == 200
    away = visitor.post(
        f"{locked}/key", data=form | {"back": "https://evil.example/"}, timeout=60, allow_redirects=False
    )
    assert away.headers["location"] == "/"
    bearer = {"Authorization": "Bearer a-long;key"}
    assert requests.get(f"{locked}/config", headers=bearer, timeout=60).status_code == 200


def test_other_hosts_need_keys_and_keys_open_everything():
    with pytest.raises(sf.SteerError, match=r"at 0\.0\.0\.0, where others can reach it, needs keys"):
        board.check_keys("0.0.0.0", None)
    with pytest.raises(sf.DataError, match="cannot be one for some of them"):
        board.check_keys("127.0.0.1", {"a-key": ["happy"]})
    with pytest.raises(sf.DataError, match="is empty, which would leave the server open"):
        board.check_keys("0.0.0.0", [])


def test_a_folder_that_is_not_there_is_one_line_of_warning(tmp_path):
    with pytest.warns(sf.SteerWarning) as told, sf.dashboard(build("llama"), words(template=True), tmp_path / "none"):
        assert not (tmp_path / "none").exists()
    assert [str(each.message) for each in told if each.category is sf.SteerWarning] == [
        f"There is no folder '{tmp_path / 'none'}' yet; the first vector that is saved makes it."
    ]


def test_the_demo_model_is_loaded_again_by_its_own_function(demo):
    assert _name_of(demo[0]) == "demo" and _name_of(build("llama")) == "llama"


def test_a_dashboard_is_served_until_it_is_closed():
    with sf.dashboard(build("llama"), words(template=True)) as running:
        assert requests.get(running.url, timeout=60).status_code == 200
        assert running.url in repr(running) and f'<iframe src="{running.url}" title=' in running._repr_html_()
        port = int(running.url.rstrip("/").rpartition(":")[2])
        with pytest.raises(sf.SteerError, match="cannot be served at 127.0.0.1:[0-9]+ "):
            sf.dashboard(build("llama"), words(template=True), port=port)
    with pytest.raises(requests.ConnectionError):
        requests.get(running.url, timeout=60)
