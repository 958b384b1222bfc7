"""The README's code runs, as one program, on the real model; so does every script in examples/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.heavy
def test_readme_code_runs(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda: demo)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert out.startswith("My day was ") and out.splitlines()[1].startswith("(")


def test_inputs_go_to_the_models_device():
    """Of every example: in pages, notebooks, scripts and docstrings."""
    files = [ROOT / "README.md", *(f for d in ("docs", "examples", "steerfn") for f in (ROOT / d).rglob("*.*"))]
    lines = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        if file.suffix in (".md", ".py", ".ipynb")
        for line in file.read_text(encoding="utf8").splitlines()
        if "return_tensors=" in line
    ]
    assert len(lines) >= 5 and not [line for line in lines if ".to(" not in line]


def test_it_is_short():
    assert len(README.splitlines()) <= 65


def test_the_first_block_has_at_most_fifteen_lines():
    first = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert sum(bool(line.strip()) for line in first.splitlines()) <= 15


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
@pytest.mark.docs
def test_examples_run(demo, script, tmp_path):
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # the other test process wants a core too
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=240, env=one)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
