"""Vectors at run time: who may change them, what is refused, and that nothing is lost, torn or changed unseen."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import threading
import tracemalloc
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
import safetensors.torch
import torch
from families import build
from served import paced, post, served, tokenizer
from steering import vector

import steerfn as sf
from steerfn import serving

SITE = sf.resid_post[1]
ADMIN = {"authorization": "Bearer root"}
BYTES = {**ADMIN, "content-type": "application/octet-stream"}
GREEDY = {"prompt": "a b", "temperature": 0, "max_tokens": 6}
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of three vectors, by seed, and their hashes."""
    where, made = tmp_path_factory.mktemp("files"), []
    for seed in range(3):
        path = sf.save(vector(SITE, seed=seed, scale=3.0), where / f"{seed}.safetensors")
        made.append((path.read_bytes(), sf.files.describe(path)["sha256"]))
    return made


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "vectors"
    where.mkdir()
    return where


def put(address, name, data, headers=BYTES):
    return requests.put(f"{address}/v1/vectors/{name}", data=data, headers=headers, timeout=250)


def delete(address, name, headers=ADMIN):
    return requests.delete(f"{address}/v1/vectors/{name}", headers=headers, timeout=250)


def said(model, seed, prompt="a b"):
    op = sf.add(vector(SITE, seed=seed, scale=3.0))
    return sf.generate(model, tokenizer(), prompt, op, chat=False, max_new_tokens=6, do_sample=False).texts[0]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_vector_comes_is_replaced_and_goes_with_a_line_and_both_hashes_for_each(model, files, folder, tmp_path):
    (first, one), (second, two), _ = files
    application = serving.app(
        model, tokenizer(), folder, api_keys={"user": None}, admin_keys=["root"], audit=tmp_path / "log"
    )
    with served(application) as address:
        user = {"authorization": "Bearer user"}

        def text(name="happy"):
            found = post(address, "/v1/completions", {**GREEDY, "steering": name}, headers=user).json()
            return found["choices"][0]["text"] if "choices" in found else found["error"]["code"]

        assert text() == "unknown_vector"
        added = put(address, "happy", first)
        assert (added.status_code, added.json()) == (
            201, {"id": "happy", "object": "vector", "sha256": one, "sites": [SITE.name], "method": None},
        )  # fmt: skip
        assert text() == said(model, 0)
        replaced = put(address, "happy", second)
        assert replaced.status_code == 200 and replaced.json() == {
            **added.json(), "sha256": two, "former_sha256": one,
        }  # fmt: skip
        assert text() == said(model, 1) != said(model, 0)
        alone = requests.get(f"{address}/v1/vectors/happy", headers=user)
        listed = requests.get(f"{address}/v1/vectors", headers=ADMIN).json()
        assert [alone.json()] == listed["data"] and alone.json()["sha256"] == two and listed["passed_over"] == []
        assert requests.get(f"{address}/v1/vectors/", headers=user).json()["data"] == listed["data"]
        removed = delete(address, "happy")
        assert removed.json() == {"id": "happy", "object": "vector", "deleted": True, "former_sha256": two}
        assert text() == "unknown_vector" and delete(address, "happy").status_code == 404
        assert requests.get(f"{address}/v1/vectors/happy", headers=user).status_code == 404
        metrics = requests.get(f"{address}/metrics", headers=user).text
    assert not list(folder.iterdir())
    for action in ("add", "replace", "remove"):
        assert f'steerfn_vector_changes_total{{action="{action}"}} 1.0' in metrics
    changes = [line for line in lines(tmp_path / "log") if line["event"] == "change"]
    assert [(c["action"], c["sha256_before"], c["sha256_after"], c["status"]) for c in changes] == [
        ("add", None, one, 201), ("replace", one, two, 200), ("remove", two, None, 200),
    ]  # fmt: skip
    for change in changes:
        assert change["who"].startswith("admin key ") and change["client"] == "127.0.0.1"
        assert change["vector"] == "happy" and change["endpoint"] == "/v1/vectors/happy"
    assert len({change["id"] for change in changes}) == 3 and "root" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("api_keys", "admin_keys", "bearer", "status", "code"),
    [
        (None, None, "", 403, "no_admin_keys"),
        (None, None, "Bearer root", 403, "no_admin_keys"),
        (["user"], None, "Bearer user", 403, "no_admin_keys"),
        (["user"], ["root"], "Bearer user", 403, "not_an_admin"),
        (["user"], ["root"], "Bearer roo", 401, "invalid_api_key"),
        (["user"], ["root"], "", 401, "invalid_api_key"),
        (None, ["root"], "", 401, "invalid_api_key"),
        (None, ["root"], "Bearer ", 401, "invalid_api_key"),
        (None, ["root"], "Bearer user", 401, "invalid_api_key"),
    ],
)
def test_who_bears_no_admin_key_changes_nothing_and_has_it_in_the_log(
    api_keys, admin_keys, bearer, status, code, model, files, folder, tmp_path
):
    (folder / "happy.safetensors").write_bytes(files[0][0])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    application = serving.app(
        model, tokenizer(), folder, api_keys=api_keys, admin_keys=admin_keys, audit=tmp_path / "log"
    )
    with served(application) as address:
        head = {"authorization": bearer}
        found = [
            put(address, "happy", files[1][0], {**BYTES, **head}), put(address, "new", files[1][0], {**BYTES, **head}),
            put(address, "happy", files[1][0], head), delete(address, "happy", head), delete(address, "none", head),
            delete(address, "..%2fx", head), put(address, "", b"", {**BYTES, **head}),
        ]  # fmt: skip
        for answer in found:
            error = answer.json()["error"]
            assert answer.status_code == status and error["code"] == code and error["message"].endswith(".")
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as talk:  # answered without its body
            bare = f"PUT /v1/vectors/happy HTTP/1.1\r\nhost: localhost\r\nauthorization: {bearer}\r\n"
            talk.sendall(f"{bare}content-type: application/octet-stream\r\ncontent-length: 30000000\r\n\r\n".encode())
            assert f" {status} ".encode() in talk.recv(1000).splitlines()[0]
        metrics = requests.get(f"{address}/metrics", headers={"authorization": "Bearer user"}).text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    refused = lines(tmp_path / "log")
    assert len(refused) == 8 and {line["event"] for line in refused} == {"refused"}
    assert {(line["status"], line["code"]) for line in refused} == {(status, code)}
    assert "steerfn_vector_changes_total{" not in metrics


def test_an_admin_key_asks_like_any_other_and_an_open_server_stays_open(model, files, folder):
    with served(serving.app(model, tokenizer(), folder, admin_keys=["root"])) as address:
        assert put(address, "v", files[0][0]).status_code == 201
        for head in ({}, ADMIN, {"authorization": "Bearer none"}):
            found = post(address, "/v1/completions", {**GREEDY, "steering": "v"}, headers=head)
            assert found.json()["choices"][0]["text"] == said(model, 0)
    with served(serving.app(model, tokenizer(), folder, api_keys=["user"], admin_keys=["root"])) as address:
        assert post(address, "/v1/completions", {**GREEDY, "steering": "v"}, headers=ADMIN).status_code == 200
        assert post(address, "/v1/completions", GREEDY).status_code == 401


@pytest.mark.parametrize(
    "name",
    [
        "..%2fhappy", "%2e%2e%2fhappy", "%2fetc%2fpasswd", "a%2fb", "a%5cb", ".hidden", "%2e", "%2e%2e", "-x", "_x", "",
        "a%00b", "a%0db", "a%1b[31m", "a%20b", "a:b", "a*", "h%C3%A9", "%ff", "CON", "nul.x", "com1", "LPT9.a.b", "a.",
        "x" * 129, "happy.safetensors", "happy.PT", "happy.json", "happy.gguf", "~", "a%25", "C:x",
    ],
)  # fmt: skip
def test_a_name_that_is_no_plain_file_name_is_refused(name, files, hostile_address):
    status, text = sent_as_it_stands(hostile_address, "PUT", name, files[0][0])
    error = json.loads(text)["error"]
    assert status == 400 and error["code"] == "unsafe_name" and "A vector cannot be called" in error["message"]
    assert len(error["message"]) < 400 and text.isascii() and text.isprintable()
    assert sent_as_it_stands(hostile_address, "DELETE", name)[0] == 404
    assert sent_as_it_stands(hostile_address, "PUT", f"{name}%0Ab", files[0][0])[0] == 404


def sent_as_it_stands(address, method, name, data=None):
    """The status and the text of an answer; clients that know URLs tidy their paths."""
    with contextlib.closing(http.client.HTTPConnection(address.removeprefix("http://"), timeout=250)) as talk:
        talk.request(method, f"/v1/vectors/{name}", data, BYTES)
        found = talk.getresponse()
        return found.status, found.read().decode()


FORMER = "former"


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory, files):
    where = tmp_path_factory.mktemp("hostile") / "vectors"
    where.mkdir()
    (where / f"{FORMER}.safetensors").write_bytes(files[0][0])
    return where


@pytest.fixture(scope="module")
def hostile_address(model, hostile_folder):
    limits = serving.Limits(max_upload=2**20, receive=60.0)
    log = hostile_folder.parent / "log"
    with served(serving.app(model, tokenizer(), hostile_folder, limits=limits, admin_keys=["root"], audit=log)) as at:
        yield at
    assert [path.name for path in hostile_folder.iterdir()] == [f"{FORMER}.safetensors"]
    assert sorted(path.name for path in hostile_folder.parent.iterdir()) == ["log", "vectors"]
    assert {line["event"] for line in lines(log)} == {"refused", "begin", "end"}, "something was changed"


class Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/steerfn-was-run",)


def header(entries, tail=b""):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + tail


def saved(v, folder):
    return sf.save(v, folder / "made.safetensors").read_bytes()


HOSTILE = {
    "nothing": lambda good, _: b"",
    "text": lambda good, _: b"nothing of the kind",
    "a pickle": lambda good, _: pickle.dumps(Runs()),
    "a huge header": lambda good, _: struct.pack("<Q", 2**63) + good[8:],
    "a header beyond its end": lambda good, _: struct.pack("<Q", len(good)) + good[8:],
    "a deep header": lambda good, _: header(b"[" * 200_000),
    "a long header": lambda good, _: header(b"[" + b"{}," * 300_000 + b"{}]"),
    "tensors without bytes": lambda good, _: header(
        {"resid_post[1]": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ),
    "another library's": lambda good, _: safetensors.torch.save({"resid_post[1]": torch.ones(32)}),
    "a deep document": lambda good, _: header({"__metadata__": {"steerfn": "[" * 200_000}}),
    "cut": lambda good, _: good[:-5],
    "longer": lambda good, _: good + b"\0",
    "one bit": lambda good, _: good[:-3] + bytes([good[-3] ^ 1]) + good[-2:],
    "another width": lambda _, folder: saved(vector(SITE, width=16), folder),
    "a layer too deep": lambda _, folder: saved(vector(sf.resid_post[7]), folder),
    "a head too many": lambda _, folder: saved(vector(sf.head_out[1, 9], width=8), folder),
    "another model": lambda _, folder: saved(
        vector(SITE).with_metadata(model=sf.values.fingerprint(build("gpt2"), weights=True)), folder
    ),
    "other weights": lambda _, folder: saved(
        vector(SITE).with_metadata(model=sf.values.fingerprint(other_weights(), weights=True)), folder
    ),
}


def other_weights():
    other = build("llama")
    with torch.no_grad():
        other.lm_head.weight += 1
    return other


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_upload_is_refused_and_the_former_vector_stays(kind, model, files, hostile_address, tmp_path):
    data = HOSTILE[kind](files[1][0], tmp_path)
    for name in (FORMER, "new"):
        found = put(hostile_address, name, data)
        error = found.json()["error"]
        assert found.status_code == 400 and error["code"] == "unusable_vector", found.text
        assert f"The vector {name!r} was not taken: " in error["message"] and len(found.text) < 2000
        assert str(tmp_path.parent) not in found.text and "/" not in error["message"].split(": ")[0]
    answer = post(hostile_address, "/v1/completions", {**GREEDY, "steering": FORMER}).json()
    assert answer["choices"][0]["text"] == said(model, 0) and answer["steering"][0]["sha256"] == files[0][1]
    assert not Path("/tmp/steerfn-was-run").exists()


@pytest.mark.parametrize("kind", ["a long header", "a deep header", "a huge header", "cut", "tensors without bytes"])
def test_the_memory_of_an_upload_is_a_multiple_of_its_size(kind, files, hostile_address, tmp_path):
    large = (
        saved(vector(*[sf.resid_post[i] for i in range(1000)], width=200), tmp_path) if kind == "cut" else files[1][0]
    )
    data = HOSTILE[kind](large, tmp_path)
    tracemalloc.start()
    try:
        assert put(hostile_address, "new", data).status_code == 400
        assert tracemalloc.get_traced_memory()[1] < 64 * len(data) + 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_that_is_too_large_is_not_read(chunked, hostile_address):
    host, port = hostile_address.removeprefix("http://").split(":")
    head = "PUT /v1/vectors/new HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer root\r\n"
    head += "content-type: application/octet-stream\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as talk:
        if chunked:
            talk.sendall(f"{head}transfer-encoding: chunked\r\n\r\n{2**20 + 1:x}\r\n{'a' * (2**20 + 1)}\r\n".encode())
        else:
            talk.sendall(f"{head}content-length: {2**20 + 1}\r\n\r\n".encode())
        assert b" 413 " in talk.recv(1000).splitlines()[0]


def test_an_upload_says_that_it_is_bytes_and_comes_in_time(model, files, folder):
    limits = serving.Limits(receive=0.5, max_body=500, max_upload=600)
    assert 500 < len(files[0][0]) <= 600
    with served(serving.app(model, tokenizer(), folder, limits=limits, admin_keys=["root"])) as address:
        for kind in ({}, {"content-type": "application/json"}, {"content-type": "application/x-www-form-urlencoded"}):
            found = put(address, "v", files[0][0], {**ADMIN, **kind})
            assert found.status_code == 415 and "Content-Type: application/octet-stream" in found.text
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as talk:
            head = "PUT /v1/vectors/v HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer root\r\n"
            head += f"content-type: application/octet-stream\r\ncontent-length: {len(files[0][0])}\r\n\r\n"
            talk.sendall(head.encode() + files[0][0][:-1])
            assert b" 408 " in talk.recv(1000).splitlines()[0]
        assert not list(folder.iterdir())
        assert put(address, "v", files[0][0]).status_code == 201, "the limit of other bodies holds for uploads"
        assert requests.put(f"{address}/v1/models/x", data=b"a" * 501, headers=BYTES).status_code == 413


def test_the_default_steering_stays_what_it_is(model, files, folder):
    (folder / "safe.safetensors").write_bytes(files[0][0])
    limits = serving.Limits()
    application = serving.app(model, tokenizer(), folder, default_steering=["safe"], limits=limits, admin_keys=["root"])
    with served(application) as address:
        for found in (delete(address, "safe"), put(address, "safe", files[1][0]), put(address, "SAFE", files[1][0])):
            assert found.status_code == 409 and found.json()["error"]["message"].endswith(".")
        assert delete(address, "safe").json()["error"]["code"] == "default_steering"
        same = put(address, "safe", files[0][0])
        assert same.status_code == 200 and same.json()["sha256"] == same.json()["former_sha256"] == files[0][1]
        assert post(address, "/v1/completions", GREEDY).json()["choices"][0]["text"] == said(model, 0)
        (folder / "safe.safetensors").write_bytes(b"damaged")
        assert delete(address, "safe").status_code == put(address, "safe", files[1][0]).status_code == 409
    assert [path.name for path in folder.iterdir()] == ["safe.safetensors"]


def test_a_request_that_runs_keeps_the_vector_that_it_began_with(files, folder):
    (folder / "v.safetensors").write_bytes(files[0][0])
    slow, permits = paced(0)
    with served(serving.app(slow, tokenizer(), folder, admin_keys=["root"])) as address:
        body = {**GREEDY, "steering": "v", "stream": True}
        permits.release()
        with requests.post(f"{address}/v1/completions", json=body, stream=True, timeout=250) as running:
            events = (line for line in running.iter_lines() if line.startswith(b"data: {"))
            parts = [json.loads(next(events)[6:])]
            assert put(address, "v", files[1][0]).status_code == 200
            assert delete(address, "v").status_code == 200 and not list(folder.iterdir())
            permits.release(100)
            parts += [json.loads(event[6:]) for event in events]
    assert "".join(part["choices"][0]["text"] for part in parts) == said(build("llama"), 0)
    assert parts[-1]["steering"][0]["sha256"] == files[0][1]


def test_answers_amid_changes_are_each_steered_by_the_vector_that_they_name(model, files, folder, tmp_path):
    (folder / "v.safetensors").write_bytes(files[0][0])
    texts = {sha: said(model, seed) for seed, (_, sha) in enumerate(files)}
    application = serving.app(model, tokenizer(), folder, admin_keys=["root"], audit=tmp_path / "log")
    with served(application) as address, concurrent.futures.ThreadPoolExecutor(6) as pool:
        changed = [pool.submit(put, address, "v", files[i % 3][0]) for i in range(30)]
        asked = [pool.submit(post, address, "/v1/completions", {**GREEDY, "steering": "v"}) for _ in range(30)]
        assert {each.result().status_code for each in changed} == {200}
        for each in asked:
            answer = each.result().json()
            assert answer["choices"][0]["text"] == texts[answer["steering"][0]["sha256"]]
    changes = [line for line in lines(tmp_path / "log") if line["event"] == "change"]
    after = [files[0][1], *(change["sha256_after"] for change in changes)]
    assert len(changes) == 30 and [change["sha256_before"] for change in changes] == after[:-1], "a change is missing"


def test_names_that_files_of_other_kinds_have(model, files, folder):
    sf.save(vector(SITE, seed=1), folder / "doc.json")
    sf.save(vector(SITE, seed=1), folder / "Happy.safetensors")
    (folder / "away.safetensors").symlink_to("/etc/hostname")
    (folder / "room.safetensors").mkdir()
    (folder / "broken.safetensors").write_bytes(b"broken")
    with served(serving.app(model, tokenizer(), folder, admin_keys=["root"])) as address:
        for name in ("doc", "happy", "away", "room"):
            found = put(address, name, files[0][0])
            assert found.status_code == 409 and found.json()["error"]["code"] == "ambiguous_vector", found.text
        assert (folder / "away.safetensors").is_symlink() and delete(address, "away").status_code == 404
        mended = put(address, "broken", files[0][0])
        assert mended.status_code == 200 and mended.json()["former_sha256"] is None
        for path in folder.glob("doc.*.pt"):
            os.utime(path, (1, 1))  # written long ago
        assert delete(address, "doc").status_code == 200 and not list(folder.glob("doc*"))
        assert put(address, "doc", files[0][0]).status_code == 201


def test_a_disk_or_a_log_that_refuses_leaves_the_vector_in_use(model, files, folder, tmp_path, monkeypatch):
    (folder / "v.safetensors").write_bytes(files[0][0])
    application = serving.app(model, tokenizer(), folder, admin_keys=["root"], audit=tmp_path / "log")

    def full(*_):
        raise OSError(28, "No space left on device")

    with served(application) as address:
        for where, told in (
            ("steerfn.values.files._atomic.os.replace", "The folder of vectors cannot be changed (No space left"),
            ("steerfn.values.files._atomic.os.fsync", "The folder of vectors cannot be changed (No space left"),
            ("steerfn.serving._audit.os.write", "The audit log cannot be written (No space left"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(where, full)
                found = put(address, "v", files[1][0])
            assert found.status_code == 503 and told in found.json()["error"]["message"]
            assert [path.name for path in folder.iterdir()] == ["v.safetensors"]
            answer = post(address, "/v1/completions", {**GREEDY, "steering": "v"}).json()
            assert answer["steering"][0]["sha256"] == files[0][1]
        with monkeypatch.context() as patch:
            patch.setattr("steerfn.serving._audit.os.write", full)
            assert delete(address, "v").status_code == 503 and (folder / "v.safetensors").exists()
        assert put(address, "v", files[1][0]).status_code == 200
    log = [line for line in lines(tmp_path / "log") if line["event"] in ("change", "refused")]
    # The line is before the last step; where that fails, its refusal has the same id.
    assert [line["event"] for line in log] == ["change", "refused", "refused", "change"]
    assert log[0]["id"] == log[1]["id"] and (log[1]["status"], log[1]["code"]) == (503, "disk")


def test_one_change_after_the_other_and_none_waits_for_ever(model, files, folder):
    application = serving.app(
        model, tokenizer(), folder, admin_keys=["root"], limits=serving.Limits(timeout=0.3), audit=folder.parent / "log"
    )
    held, done = threading.Event(), threading.Event()
    write = application.state.server.audit.write

    def slow(*arguments, **fields):
        held.set()
        done.wait(60)
        write(*arguments, **fields)

    with served(application) as address, concurrent.futures.ThreadPoolExecutor(1) as pool:
        application.state.server.audit.write = slow
        first = pool.submit(put, address, "v", files[0][0])
        held.wait(60)
        application.state.server.audit.write = write
        second = put(address, "v", files[1][0])
        done.set()
        assert second.status_code == 503 and second.json()["error"]["code"] == "busy"
        assert first.result().status_code == 201


def test_a_server_without_a_folder_refuses(model, files):
    with served(serving.app(model, tokenizer(), admin_keys=["root"])) as address:
        for found in (put(address, "v", files[0][0]), delete(address, "v")):
            assert found.status_code == 409 and "has no folder of vectors to change" in found.text


def test_the_schema_has_the_paths_where_they_do_something(model, folder):
    path = "/v1/vectors/{name}"
    for keys, methods in ((None, {"get"}), (["root"], {"get", "put", "delete"})):
        application = serving.app(model, tokenizer(), folder, api_keys=["user"], admin_keys=keys)
        schema = application.openapi()
        application.state.server.worker.close(20)
        assert set(schema["paths"][path]) == methods
        assert set(schema["components"]["securitySchemes"]) == {"key", *(["admin"] if keys else [])}
    operation = schema["paths"][path]["put"]
    [content] = operation["requestBody"]["content"].items()
    assert content[0] == "application/octet-stream" and content[1]["schema"]["maxLength"] == serving.Limits().max_upload
    assert operation["security"] == schema["paths"][path]["delete"]["security"] == [{"admin": []}]
    assert {"200", "201", "400", "401", "403", "408", "409", "413", "415", "503"} <= set(operation["responses"])


def test_the_page_of_a_browser_cannot_change_vectors(model, files, folder):
    page = "https://page.example"
    application = serving.app(model, tokenizer(), folder, admin_keys=["root"], cors_origins=[page])
    with served(application) as address:
        for method in ("PUT", "DELETE"):
            asked = {"origin": page, "access-control-request-method": method}
            assert requests.options(f"{address}/v1/vectors/v", headers=asked).status_code == 400


def examples(language):
    section = PAGE.read_text().split("## Vectors at run time")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_the_example_of_the_page(model, files, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "happy.safetensors").write_bytes(files[0][0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADMIN_KEY", "root")
    [code] = examples("python")
    start, curl = examples("bash")
    assert "--admin-keys" in start
    with served(serving.app(model, tokenizer(), folder, admin_keys=["root"])) as address:
        exec(code.replace("http://127.0.0.1:8000", address), {})
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith("201 ") and out[1] == files[0][1] and "'deleted': True" in out[2]
        if shutil.which("curl"):
            done = subprocess.run(
                ["sh", "-c", curl.replace("http://127.0.0.1:8000", address)],
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert json.loads(done.stdout)["sha256"] == files[0][1], done.stderr
            assert (folder / "happy.safetensors").read_bytes() == files[0][0]
