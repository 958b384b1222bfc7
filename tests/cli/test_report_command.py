"""`steerfn report`: what it writes is what `sf.report` gives; a mistake is one line and exit code 2."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from steering import vector
from words import words

import steerfn as sf
from steerfn.cli import main

V = vector(sf.resid_post[1], scale=2.0)
POSITIVE, NEGATIVE = ["a b c", "d e f g", "h i", "j k l m n"], ["o p", "q r s t", "u", "v w a"]
PROMPTS = ["a b c d", "d e f g a", "b b", "c c d", "e a b f", "g h k", "i j k l", "m m"]


@pytest.fixture
def at_home(tiny, tmp_path, monkeypatch):
    """A folder with a vector and texts, in which the model is the tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda **_: (tiny, words(template=True)))
    sf.save(V, "v.safetensors")
    sf.save(vector(sf.resid_post[1], width=7), "wide.safetensors")
    for name, texts in (("pos", POSITIVE), ("neg", NEGATIVE), ("prompts", PROMPTS), ("plain", ["a b c d", "e f g"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n")
    return tiny


def told(capsys, *arguments):
    code = main(["report", *map(str, arguments)])
    found = capsys.readouterr()
    return code, found.out, found.err


ARGUMENTS = (  # in the order of --help, in which the command in the report has them
    "v.safetensors", "--data", "pos.txt", "--negative", "neg.txt", "--prompts", "prompts.txt", "--passages",
    "plain.txt", "--alpha", "-2.5", "--metric", "length,repetition", "--controls", "1", "--scope", "generated",
    "--max-new-tokens", "4", "--sample", "--raw", "--seeds", "4,5", "--title", "Mine and yours",
)  # fmt: skip


def test_it_writes_what_report_gives(at_home, tmp_path, capsys):
    code, out, err = told(capsys, *ARGUMENTS, "--quiet", "--out", "page.html", "--json", "page.json")
    assert code == 0, err
    expected = sf.report(
        at_home, words(), "v.safetensors", sf.datasets.from_file("pos.txt", negative="neg.txt"), prompts=PROMPTS,
        passages=["a b c d", "e f g"], alpha=-2.5, metrics=["length", "repetition"], controls=1, max_new_tokens=4,
        scope=sf.generated, chat=False, do_sample=True, seeds=(4, 5), title="Mine and yours", progress=False,
    )  # fmt: skip
    assert out.startswith(str(expected)) and "Wrote page.html." in out and "Wrote page.json." in out
    written = json.loads((tmp_path / "page.json").read_text())
    unlike = ("about", "written")
    want = json.loads(expected.to_json())
    assert {k: v for k, v in written.items() if k not in unlike} == {k: v for k, v in want.items() if k not in unlike}
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    command = written["about"]["call"]
    assert shlex.split(command) == ["steerfn", "report", *ARGUMENTS, "--out", "page.html"]


def test_the_command_in_the_report_gives_the_same_report(at_home, tmp_path, capsys):
    told(capsys, *ARGUMENTS, "--quiet", "--json", "one.json")
    first = json.loads((tmp_path / "one.json").read_text())
    again = shlex.split(first["about"]["call"])[2:]
    told(capsys, *again, "--quiet", "--json", "two.json")
    second = json.loads((tmp_path / "two.json").read_text())
    assert {**first, "written": ""} == {**second, "written": ""}


def test_a_dataset_and_a_part_of_it_held_out(at_home, tmp_path, capsys):
    code, _, err = told(
        capsys, "v.safetensors", "--dataset", "sentiment", "--held-out", "0.25", "--prompts", "prompts.txt",
        "--max-new-tokens", 3, "--controls", 1, "--limit", 5, "--json", "x.json", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["data"]["name"] == "sentiment/test" and found["data"]["positive"] == 5
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "report needs --data FILE, or --dataset NAME (concision,"),
        (["--data", "pos.txt", "--dataset", "sentiment"], "report needs --data FILE, or --dataset NAME"),
        (["--dataset", "sentiment", "--negative", "neg.txt"], "--negative is the other side of --data; name both."),
        (["--dataset", "sentimnt"], "Did you mean 'sentiment'?"),
        (["--data", "pos.txt"], "which is one side of a contrast"),
        (["--data", "none.txt", "--negative", "neg.txt"], "Cannot read 'none.txt': there is no such file"),
        (["--dataset", "sentiment", "--prompts", "none.txt"], "Cannot read 'none.txt'"),
        (["--dataset", "sentiment", "--metric", "lenght"], "no metric 'lenght'; did you mean 'length'?"),
        (["--dataset", "sentiment", "--seeds", "1"], "--seeds goes with --sample"),
        (["--dataset", "sentiment", "--max-new-tokens", "0"], "--max-new-tokens is 0; use 1 or more."),
        (["--dataset", "sentiment", "--held-out", "2"], "`held_out` must be a finite number > 0 and < 1"),
        (
            ["--dataset", "sentiment", "--limit", "0"],
            "`limit` must be a positive integer, got 0; None takes all texts.",
        ),
        (["--dataset", "sentiment", "--controls", "0"], "`controls` must be a positive integer, got 0"),
        (["--dataset", "sentiment", "--out", "no/x.html"], "The file of --out cannot be written to 'no/x.html'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(at_home, capsys, arguments, message):
    code, _, err = told(capsys, "v.safetensors", *arguments, "--quiet")
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and err.startswith("steerfn: ")


@pytest.mark.parametrize("file", ["none.safetensors", "wide.safetensors", "pos.txt"])
def test_a_vector_that_is_none_or_does_not_fit_is_one_line(at_home, capsys, file):
    code, _, err = told(capsys, file, "--dataset", "sentiment", "--quiet")
    assert code == 2 and len(err.strip().splitlines()) == 1


@pytest.mark.heavy
def test_in_a_process_of_its_own_on_the_real_model(demo, tmp_path):
    texts = sf.datasets.load("sentiment").split()[0]
    v = sf.mean_difference(*demo, texts.positive, texts.negative, 14, position="mean", progress=False)
    sf.save(v, tmp_path / "happy.safetensors")
    command = (
        "report happy.safetensors --dataset sentiment --held-out 0.25 --alpha 2 --metric sentiment --limit 8 "
        "--max-new-tokens 12 --controls 1 --quiet"
    )
    done = subprocess.run(
        [sys.executable, "-m", "steerfn.cli", *command.split()], cwd=tmp_path, capture_output=True, text=True,
        timeout=250, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Report on the steering vector “happy”" in done.stdout and "Wrote report.html." in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in page and re.search(r"<h2>10 Signatures</h2>", page)
