"""Every steerfn command that the README, the docs or the program print runs as printed, in a shell."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import steerfn as sf

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands_of(text):
    """The steerfn commands in the shell blocks of a page."""
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        yield from (re.sub(r" +#.*", "", line).strip() for line in lines if re.match(r"\s*steerfn ", line))


PRINTED = sorted({command for page in PAGES for command in commands_of(page.read_text())})
PORTS = {"steerfn serve": "8000/health", "steerfn dashboard": "7860/"}
SERVERS = [line for line in PRINTED if line.startswith(tuple(PORTS)) and "--out" not in line]


@pytest.fixture(scope="module")
def shell(tmp_path_factory, demo):
    """Runs a line in a folder that holds the files which the commands name."""
    folder = tmp_path_factory.mktemp("printed")
    (folder / "bin").mkdir()
    program = folder / "bin" / "steerfn"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m steerfn.cli "$@"\n')
    program.chmod(0o755)
    texts = sf.datasets.load("sentiment")
    (folder / "pos.txt").write_text("\n".join(map(str, texts.positive[:8])))
    (folder / "neg.txt").write_text("\n".join(map(str, texts.negative[:8])))
    (folder / "prompts.txt").write_text("How was your day?\nTell me a story.\n")
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    demo_run = subprocess.run(
        ["bash", "-c", "steerfn demo"], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert demo_run.returncode == 0, demo_run.stderr
    (folder / "admin.txt").write_text("a-key-of-an-administrator-0123456789\n")
    (folder / "vectors").mkdir()
    (folder / "vectors" / "happy.safetensors").write_bytes((folder / "happy.safetensors").read_bytes())
    return folder, environment, demo_run.stdout


def run(line, folder, environment):
    for made in ("happy-model", "happy.gguf"):  # each command starts from what its page starts from
        subprocess.run(["rm", "-rf", folder / made], check=True)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_pages_print_commands():
    assert len(PRINTED) >= 8 and any(line.startswith("steerfn serve") for line in PRINTED)


@pytest.mark.docs
@pytest.mark.timeout(900)
@pytest.mark.parametrize("line", [line for line in PRINTED if line not in SERVERS])
def test_a_printed_command_runs(shell, line):
    folder, environment, _ = shell
    run(line, folder, environment)


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_what_the_demo_prints_next_runs(shell):
    folder, environment, out = shell
    following = [line.strip() for line in out.partition("Next:")[2].splitlines() if "steerfn " in line]
    assert len(following) >= 3
    for line in following:
        run(line, folder, environment)


@pytest.mark.docs
@pytest.mark.parametrize("line", SERVERS)
def test_a_printed_server_answers_and_stops(shell, line):
    folder, environment, _ = shell
    log, where = folder / "server.log", PORTS[" ".join(line.split()[:2])]
    with log.open("w") as out:
        process = subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{where}", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
        else:
            pytest.fail("the server did not answer within two minutes")
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
