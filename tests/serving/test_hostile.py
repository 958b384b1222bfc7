"""Requests made up from the server's own schema, and the real command: no 500, no other request reached, no cut."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
from families import build
from served import post, served
from steering import vector
from words import words

import steerfn as sf
from steerfn import serving
from steerfn.cli import main

STEADY = {"prompt": "a b c", "max_tokens": 4, "temperature": 0, "steering": {"vector": "v", "alpha": 2.0}}


def address_in(log, process):
    """Where a server says that it runs, once it does."""
    until, found = time.monotonic() + 250, None
    while found is None:
        assert time.monotonic() < until and process.poll() is None, log.read_text()
        time.sleep(0.1)
        found = re.search(r"running on (http://\S+)", log.read_text())
    return found[1]


@pytest.mark.heavy
def test_requests_made_up_from_its_schema_never_give_a_500_nor_reach_another_request(tmp_path):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    sf.save(vector(sf.resid_post[1], scale=3.0), tmp_path / "v.safetensors")
    limits = serving.Limits(max_tokens=8, max_rows=4)
    with served(serving.app(build("llama"), words(template=True), tmp_path, limits=limits)) as address:
        expected = post(address, "/v1/completions", STEADY).json()["choices"]
        ended, wrong = threading.Event(), []

        def neighbour():
            while not ended.is_set():
                found = post(address, "/v1/completions", STEADY)
                if found.status_code != 429 and found.json().get("choices") != expected:
                    wrong.append(found.text)

        thread = threading.Thread(target=neighbour)
        thread.start()
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--checks",
            "not_a_server_error", "--max-examples", "25", "--seed", "1", "--no-color",
        ]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=tmp_path)
        ended.set()
        thread.join()
        metrics = requests.get(f"{address}/metrics").text
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-2000:]
    asked = sum(float(count) for count in re.findall(r'steerfn_requests_total\{endpoint="/v1/comp.* (\S+)', metrics))
    assert asked > 25 and not wrong, wrong[:3]
    assert 'status="500"' not in metrics


@pytest.mark.heavy
@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM here")
def test_the_command_serves_the_real_model_and_sigterm_lets_a_request_end(demo, tmp_path):
    sf.save(vector(sf.resid_post[12], width=576), tmp_path / "v.json")
    (tmp_path / "keys.txt").write_text("secret\n")
    command = [
        sys.executable, "-m", "steerfn.cli", "serve", "--vectors", str(tmp_path), "--port", "0", "--api-keys",
        str(tmp_path / "keys.txt"), "--audit", str(tmp_path / "audit.jsonl"), "--quiet",
    ]  # fmt: skip
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL)
    try:
        address = address_in(log, process)
        head = {"authorization": "Bearer secret", "x-forwarded-for": "1.2.3.4"}
        assert requests.get(f"{address}/v1/models", headers={"host": "evil.example"}).status_code == 400
        (tmp_path / "audit.jsonl").rename(tmp_path / "audit.1")  # as logrotate does, with its signal
        process.send_signal(signal.SIGHUP)
        body = {
            "messages": [{"role": "user", "content": "Tell me about bees."}], "max_tokens": 40, "temperature": 0,
            "stream": True, "steering": {"vector": "v", "alpha": 0.5},
        }  # fmt: skip
        with requests.post(f"{address}/v1/chat/completions", json=body, headers=head, stream=True, timeout=200) as got:
            lines = (line for line in got.iter_lines() if line)
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [json.loads(line[6:]) for line in lines if line != b"data: [DONE]"]
        assert got.status_code == 200 and first.startswith(b"data: ")
        assert rest[-1]["choices"][0]["finish_reason"] in ("stop", "length"), "the request was cut"
        assert process.wait(120) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    begin, end = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert begin["client"] == "127.0.0.1", "a header was believed"
    [refused] = map(json.loads, (tmp_path / "audit.1").read_text().splitlines())
    assert refused["status"] == 400 and "not offered: 'keys.txt'" in log.read_text()
    assert begin["steering"][0]["vector"] == "v" and end["outcome"][0] in ("stop", "length")
    assert "bees" not in (tmp_path / "audit.jsonl").read_text()


@pytest.mark.heavy
@pytest.mark.skipif(os.name == "nt", reason="the entry point is a shell script")
def test_the_entry_point_of_the_sagemaker_image(tmp_path):
    model, vectors = tmp_path / "model", tmp_path / "model" / "vectors"
    build("llama").save_pretrained(model)
    words(template=True).save_pretrained(model)
    vectors.mkdir()
    sf.save(vector(sf.resid_post[1]), vectors / "v.safetensors")
    script = Path(__file__).parents[2] / "docker" / "sagemaker" / "serve"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SM_MODEL_DIR": str(model), "SAGEMAKER_BIND_TO_PORT": "0"}
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(["sh", str(script)], stderr=file, stdout=subprocess.DEVNULL, env=environment)
    try:
        address = address_in(log, process).replace("0.0.0.0", "127.0.0.1")
        assert requests.get(f"{address}/ping").status_code == 200
        body = {"prompt": "a b", "max_tokens": 2, "steering": {"vector": "v"}}
        assert post(address, "/invocations", body).json()["usage"]["completion_tokens"] == 2
    finally:
        process.terminate()
        process.wait(120)


def test_a_mistake_on_the_command_line_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STEERFN_API_KEYS", raising=False)
    monkeypatch.setattr("steerfn.demo_model", lambda **_: (build("llama"), words()))
    (tmp_path / "empty.txt").write_text("\n")
    key = str(tmp_path / "key.txt")
    Path(key).write_text("secret\n")
    for arguments, told in (
        (["--host", "0.0.0.0"], "needs API keys: pass --api-keys FILE, set STEERFN_API_KEYS"),
        (["--api-keys", str(tmp_path / "empty.txt")], "holds no API key, which would leave the server open"),
        (["--api-keys", str(tmp_path / "none.txt")], "Cannot read the API keys"),
        (["--admin-keys", str(tmp_path / "empty.txt")], "holds no admin key, which would let anyone change vectors"),
        (["--admin-keys", key, "--api-keys", key], "is one of api_keys too"),
        (["--vectors", str(tmp_path / "none")], "does not exist; make it, or pass another"),
        (["--port", "99999"], "`--port` must be an integer from 0 to 65535, got 99999"),
        (["--max-rows", "0"], "`max_rows` must be a finite number >= 1, got 0"),
        (["--default-steering", "{oops"], "--default-steering is not JSON"),
        (["--default-steering", "none"], "The default steering 'none' cannot be applied: There is no vector 'none'"),
        (["--cors-origin", "*"], "'*' would let every page that is visited ask this server"),
        (["--allowed-host", " "], "allowed_hosts must be a list of host names"),
        (["--audit", str(tmp_path / "no" / "log")], "Cannot append to the audit log"),
    ):
        assert main(["serve", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith("steerfn: ") and told in err and err.count("\n") == 1
