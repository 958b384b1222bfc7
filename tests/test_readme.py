"""The README's code runs, as one program, on the real model; so does every script in examples/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch, of vmap over fused attention
@pytest.mark.heavy
def test_readme_code_runs(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda: demo)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert "LlamaForCausalLM: 30 blocks" in out and "True torch.Size" in out


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


GUIDES = {
    "agents": ("steered and plain differ: True", "streamed: True", "LlamaIndex answers alike: True"),
    "conditions": ("unchanged: True", 'left alone: >{"name": "weather"'),
    "engines": ("SteeringVector(resid_post[6]", "steerfn.json"),
    "discovery": ("<- best", "Quality(AUC"),
    "compare": ("unsteered", "Steering changed", "{+", "10 texts each way"),
    "plots": ("drawn: next", "drawn: tokens", "drawn: separation"),
    "protocols": ("anti_steerable", "True", "p_first_letter", "Strengths chosen", "perplexity_ratio"),
    "report": ("Report on the steering vector “happy”", "Tested on 12 prompts"),
    "transfer": ("Carried over: cosine", "<- chosen"),
    "zoo": ("what its report says", "base_model: HuggingFaceTB/SmolLM2-135M-Instruct", "happy again: True"),
    "sweeps": ("propensity", "15 configurations x 4 prompts", "exclamations"),
}


@pytest.mark.docs
@pytest.mark.parametrize("guide", GUIDES)
def test_the_code_of_a_guide_runs(demo, guide, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda: demo)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guides" / f"{guide}.md").read_text(), re.DOTALL)
    exec(compile("\n".join(blocks), f"{guide}.md", "exec"), {"__name__": "guide"})
    out = capsys.readouterr().out
    assert blocks and all(words in out for words in GUIDES[guide])


def test_the_first_block_has_at_most_fifteen_lines():
    first = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert sum(bool(line.strip()) for line in first.splitlines()) <= 15


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
@pytest.mark.docs
def test_examples_run(demo, script, tmp_path):
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # the other test process wants a core too
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=240, env=one)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
