"""The audit log has whole lines, whatever the disk does, and stays at its path."""

import concurrent.futures
import json
import os
import threading

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
from families import build
from served import paced, post, served, wait_for
from words import NAMES, words

from steerfn import serving
from steerfn.serving._audit import Audit


def lines(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_short_writes_are_gone_on_with_and_threads_do_not_mix(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr("steerfn.serving._audit.os.write", lambda file, data: write(file, data[:7]))
    log = Audit(tmp_path / "log")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: log.write("begin", str(i)), range(40)))
    assert sorted(lines(tmp_path / "log"), key=int) == [str(i) for i in range(40)]


def test_after_a_torn_line_the_next_begins_anew(tmp_path, monkeypatch):
    path, write, full = tmp_path / "log", os.write, []

    def nearly_full(file, data):
        if full:
            raise OSError(28, "No space left on device")
        full.append(True)
        return write(file, data[:9])

    log = Audit(path)
    log.write("begin", "1")
    with monkeypatch.context() as patch:
        patch.setattr("steerfn.serving._audit.os.write", nearly_full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                log.write("begin", "2")
    log.write("begin", "3")
    whole, torn, after = path.read_text().splitlines()
    assert json.loads(whole)["id"] == "1" and len(torn) == 9 and json.loads(after)["id"] == "3"
    path.write_bytes(path.read_bytes()[:-4])  # a crash of the machine
    Audit(path).write("begin", "4")
    assert json.loads(path.read_text().splitlines()[-1])["id"] == "4" and len(path.read_text().splitlines()) == 4


def test_rotation_is_followed(tmp_path):
    path, log = tmp_path / "log", Audit(tmp_path / "log")
    log.write("begin", "1")
    path.rename(tmp_path / "log.1")
    log.write("begin", "2")
    path.unlink()
    log.write("begin", "3")
    assert lines(tmp_path / "log.1") == ["1"] and lines(path) == ["3"]
    with path.open("r+") as file:
        file.truncate(0)
    log.write("begin", "4")
    assert lines(path) == ["4"] and path.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_refuses_and_runs_nothing():
    application = serving.app(build("llama"), words(), audit="/dev/full")
    with served(application) as address:
        found = post(address, "/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert found.status_code == 503 and "audit log cannot be written (No space left" in found.text
        assert post(address, "/v1/completions", {"prompt": "a", "max_tokens": -1}).status_code == 400


def test_a_slow_disk_holds_a_request_no_longer_than_its_time(tmp_path, monkeypatch):
    done = threading.Event()
    limits = serving.Limits(timeout=0.5)
    with served(serving.app(build("llama"), words(), audit=tmp_path / "log", limits=limits)) as address:
        monkeypatch.setattr("steerfn.serving._audit.os.fsync", lambda _: done.wait(30))
        found = [post(address, "/v1/completions", {"prompt": "a", "max_tokens": 1}) for _ in range(2)]
        assert not done.is_set() and [each.status_code for each in found] == [504, 504], "it waited for the disk"
        done.set()


def test_a_caller_that_leaves_has_its_last_line_too(tmp_path):
    path, (model, permits) = tmp_path / "log", paced(0)
    application = serving.app(model, words(names=NAMES), audit=path)
    worker = application.state.server.worker
    with served(application) as address:
        body = {"prompt": "a", "max_tokens": 64, "temperature": 0, "stream": True}
        for _ in range(3):
            permits.release()
            with requests.post(f"{address}/v1/completions", json=body, stream=True, timeout=60) as found:
                next(found.iter_lines())
            wait_for(lambda: worker._taken[0].cancelled)
            permits.release()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    ends = [each for each in events if each["event"] == "end"]
    assert len(events) == 6 and len(ends) == 3 and all(each["completion_tokens"] < 64 for each in ends)


def test_the_client_is_the_peer_whatever_a_header_says(tmp_path):
    with served(serving.app(build("llama"), words(), audit=tmp_path / "log")) as address:
        post(address, "/v1/completions", {"prompt": "a", "max_tokens": 1}, headers={"x-forwarded-for": "1.2.3.4"})
    assert {json.loads(line)["client"] for line in (tmp_path / "log").read_text().splitlines()[:1]} == {"127.0.0.1"}
