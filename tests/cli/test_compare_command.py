"""`steerfn compare`: what it prints and writes is what `sf.compare` gives; a mistake is one line and exit code 2."""

import io
import json
import os
import subprocess
import sys

import pytest
from steering import vector
from words import words

import steerfn as sf
from steerfn.cli import main

V = vector(sf.resid_post[1], scale=2.0)
PROMPTS = ["a b c", "d e", "f g h"]


@pytest.fixture
def at_home(tiny, tmp_path, monkeypatch):
    """A folder with a vector, in which the model is the tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda **_: (tiny, words(template=True)))
    monkeypatch.setenv("COLUMNS", "100")
    sf.save(V, "v.safetensors")
    return tiny


def told(capsys, *arguments):
    code = main(["compare", *map(str, arguments)])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_it_prints_what_compare_gives(at_home, capsys):
    code, out, _ = told(
        capsys, *PROMPTS, "--vector", "v.safetensors", "--alpha", "-2", "--max-new-tokens", 4, "--scope", "generated",
        "--metric", "length,repetition", "--metric", "distinct_n", "--quiet",
    )  # fmt: skip
    expected = sf.compare(
        at_home, words(template=True), PROMPTS, V, ["length", "repetition", "distinct_n"], alpha=-2.0,
        scope=sf.generated, max_new_tokens=4, progress=False,
    )  # fmt: skip
    assert code == 0 and out.strip() == str(expected).strip()
    assert expected.changed > 0


def test_it_writes_what_was_asked_for(at_home, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    code, out, _ = told(
        capsys, "--file", "prompts.txt", "--vector", "v.safetensors", "--max-new-tokens", 3, "--sample", "--raw",
        "--seeds", "4,5", "--max-rows", 1, "--html", "x.html", "--json", "x.json", "--markdown", "x.md", "--quiet",
    )  # fmt: skip
    expected = sf.compare(
        at_home, words(), PROMPTS, V, seeds=(4, 5), do_sample=True, max_new_tokens=3, chat=False, progress=False
    )
    assert code == 0 and "1. a b c (seed 4)" in out and "... and 5 more" in out
    assert all(f"Wrote {name}." in out for name in ("x.html", "x.json", "x.md"))
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["records"] == json.loads(expected.to_json())["records"]
    assert (tmp_path / "x.html").read_text() == expected.to_html()
    assert (tmp_path / "x.md").read_text() == expected.to_markdown()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PROMPTS, "--vector", "none.safetensors"], "Cannot load 'none.safetensors': there is no such file"),
        ([*PROMPTS, "--vector", "v.safetensors", "--metric", "lenght"], "no metric 'lenght'; did you mean 'length'?"),
        ([*PROMPTS, "--vector", "v.safetensors", "--seeds", "1"], "--seeds goes with --sample"),
        ([*PROMPTS, "--vector", "v.safetensors", "--max-rows", "-1"], "--max-rows is -1; use 0 or more."),
        ([*PROMPTS, "--vector", "v.safetensors", "--max-new-tokens", "0"], "--max-new-tokens is 0; use 1 or more."),
        ([*PROMPTS, "--vector", "v.safetensors", "--file", "none.txt"], "Cannot read 'none.txt'"),
        (["--vector", "v.safetensors"], "There is no prompt"),
        ([*PROMPTS, "--vector", "wide.safetensors"], "has width 7"),
        (
            [*PROMPTS, "--vector", "v.safetensors", "--json", "nowhere/x.json", "--quiet"],
            "The file of --json cannot be written to 'nowhere/x.json': there is no folder 'nowhere'; create it first.",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(at_home, arguments, message, capsys, monkeypatch):
    sf.save(vector(sf.resid_post[1], width=7), "wide.safetensors")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = told(capsys, *arguments)
    assert code == 2 and err.startswith("steerfn: ") and message in err and len(err.strip().splitlines()) == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        main(["compare", "--help"])
    assert left.value.code == 0 and "usage: steerfn compare" in capsys.readouterr().out


@pytest.mark.heavy
def test_a_real_command_on_the_real_model(demo, tmp_path):
    pairs = sf.datasets.load("sentiment")
    v = sf.mean_difference(*demo, pairs.positive[:6], pairs.negative[:6], 14, position="mean", progress=False)
    sf.save(v, tmp_path / "happy.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "steerfn.cli", "compare", "How was your day?", "--vector", "happy.safetensors"]
        + ["--alpha", "2", "--max-new-tokens", "12", "--html", "happy.html"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "COLUMNS": "90", "OMP_NUM_THREADS": "1"},  # the other test process wants a core too
    )
    assert done.returncode == 0, done.stderr
    [after] = sf.generate(*demo, "How was your day?", sf.add(v, 2.0), max_new_tokens=12).texts
    assert after.split()[0] in done.stdout and "Steering changed 1 of 1 text." in done.stdout
    assert "\x1b" not in done.stdout and "How was your day?" in (tmp_path / "happy.html").read_text()
