"""The command line as a person uses it: real commands in real processes, exit codes, one clear line for a mistake."""

import json
import os
import subprocess
import sys

import pytest
import torch

import steerfn as sf
from steerfn.cli import main

pytestmark = pytest.mark.heavy


def run(*arguments, cwd, stdin=None):
    """A command in a process of its own, on the CPU."""
    return subprocess.run(
        [sys.executable, "-m", "steerfn.cli", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "COLUMNS": "90", "OMP_NUM_THREADS": "1"},  # the other test process wants a core too
    )


def test_demo(demo, tmp_path):
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for told in (
        "alpha  -2.0",
        "alpha  +0.0",
        "alpha  +2.0",
        "|v| =",
        "An effect was shown",
        "bit for bit what they were",
        "Next:",
    ):
        assert told in done.stdout
    assert done.stdout.count("alpha  +2.0") == 2 and max(map(len, done.stdout.splitlines())) <= 90
    answers = [line for line in done.stdout.splitlines() if "alpha" in line and "|" in line]
    assert len(set(answers)) == len(answers)
    v = sf.load(tmp_path / "happy.safetensors", model=demo[0], strict=True)
    assert v.metadata["model"]["name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_discover_generate_and_inspect(demo, tmp_path):
    (tmp_path / "pos.txt").write_text("I love it.\n\nSo happy!\nWonderful.\n")
    (tmp_path / "neg.txt").write_text("I hate it.\nSo sad!\n")
    files = ("--positive", "pos.txt", "--negative", "neg.txt")
    made = run(
        "discover", *files, "--layer", 14, "--site", "attn_out[3]", "--out", "v-1.5.json", "--quiet", cwd=tmp_path
    )
    assert made.returncode == 0 and "3 positive and 2 negative" in made.stdout and not made.stderr, made.stderr
    want = sf.mean_difference(
        *demo,
        ["I love it.", "So happy!", "Wonderful."],
        ["I hate it.", "So sad!"],
        [14, sf.attn_out[3]],
        progress=False,
    )
    assert sf.load(tmp_path / "v-1.5.json").allclose(want, rtol=1e-4, atol=1e-4)

    shown = run("inspect", "v-1.5.json", cwd=tmp_path)
    assert shown.returncode == 0 and "resid_post[14]" in shown.stdout and "mean_difference" in shown.stdout
    told = json.loads(run("inspect", "v-1.5.json", "--json", cwd=tmp_path).stdout)
    assert told["sites"] == ["resid_post[14]", "attn_out[3]"] and told["metadata"]["counts"]["positive"] == 3

    options = ("--vector", "v-1.5.json", "--alpha", "0,2", "--max-new-tokens", 6, "--scope", "generated")
    text = run("generate", *options, cwd=tmp_path, stdin="How are you?\n\nGood day.\n")
    plain = sf.generate(*demo, ["How are you?", "Good day."], max_new_tokens=6).texts
    assert text.returncode == 0, text.stderr
    assert text.stdout.count("[alpha +0]") == text.stdout.count("[alpha +2]") == 2
    assert all(answer.strip() in text.stdout for answer in plain)


def test_pairs_and_layout(demo, tmp_path):
    pairs = [{"positive": "good", "negative": "bad"}, {"positive": "yes", "negative": "no"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    assert run("discover", "--pairs", "p.jsonl", "--out", "v.safetensors", "--quiet", cwd=tmp_path).returncode == 0
    assert sf.load(tmp_path / "v.safetensors").layers == (15,)  # the middle by default
    layout = run("inspect", cwd=tmp_path)
    assert layout.returncode == 0 and "30 blocks, d_model 576" in layout.stdout and not layout.stderr, layout.stderr


def test_discover_from_a_shipped_set_shows_the_layers_and_takes_the_best(demo, tmp_path):
    made = run("discover", "--dataset", "sentiment", "--profile", "--out", "v.safetensors", "--quiet", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    [best] = [line.split()[0] for line in made.stdout.splitlines() if line.endswith("<- best")]
    v = sf.load(tmp_path / "v.safetensors")
    assert [site.name for site in v.sites] == [best] and sf.quality(v)[v.sites[0]].auc > 0.9
    assert made.stdout.count("resid_post[") >= 30 and max(map(len, made.stdout.splitlines())) <= 140


def test_discover_with_another_method_and_items(demo, tmp_path):
    items = [
        {
            "question": f"Is {n} even?\n (A) Yes\n (B) No",
            "answer_matching_behavior": "(A)",
            "answer_not_matching_behavior": "(B)",
        }
        for n in (2, 4, 6)
    ]
    (tmp_path / "items.json").write_text(json.dumps(items))
    options = ("--pairs", "items.json", "--layer", 3, "--out", "v.json", "--quiet", "--explain")
    made = run("discover", *options, "--method", "caa", "--quality", cwd=tmp_path)
    assert made.returncode == 0 and "[[A]]" in made.stdout and "Quality(AUC" in made.stdout, made.stderr
    want = sf.caa(*demo, items, 3, progress=False)
    assert sf.load(tmp_path / "v.json").allclose(want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["discover", "--out", "v.json"], "discover needs --positive FILE and --negative FILE, or --pairs FILE, or"),
        (
            ["discover", "--dataset", "sentiment", "--positive", "a", "--out", "v.json"],
            "discover needs --positive FILE and",
        ),
        (["discover", "--dataset", "sentimnt", "--out", "v.json"], "Did you mean 'sentiment'?"),
        (["discover", "--dataset", "sentiment"], "discover needs --out FILE for the vector, or --profile."),
        (
            ["discover", "--dataset", "sentiment", "--method", "caa", "--out", "v.json"],
            "are not questions with two answers",
        ),
        (["discover", "--positive", "no.txt", "--negative", "no.txt", "--out", "v.json"], "Cannot read 'no.txt'"),
        (["discover", "--pairs", "bad.jsonl", "--out", "v.json"], "Cannot read 'bad.jsonl': line 1 is not valid JSON"),
        (["discover", "--pairs", "odd.jsonl", "--out", "v.json"], "Cannot read 'odd.jsonl': line 1 lacks negative"),
        (
            ["discover", "--positive", "blank.txt", "--negative", "blank.txt", "--out", "v.json"],
            "Cannot read 'blank.txt': it is empty",
        ),
        (
            ["discover", "--positive", "latin.txt", "--negative", "latin.txt", "--out", "v.json"],
            "it is not UTF-8 text",
        ),
        (
            ["generate", "hello", "--vector", "none.safetensors"],
            "Cannot load 'none.safetensors': there is no such file",
        ),
        (["generate", "hello", "--max-new-tokens", "0"], "--max-new-tokens is 0; use 1 or more."),
        (["inspect", "blank.txt"], "does not end in a suffix that names a format"),
        (["inspect", "--model", "/no/such/model"], "/no/such/model"),
        (["inspect", "--quantization", "int8"], "--quantization goes with --model NAME"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "odd.jsonl").write_text('{"positive": 1}')
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("steerfn: ") and message in told and len(told.strip().splitlines()) == 1


def test_help_of_every_command_and_the_version(capsys):
    for command in ("demo", "discover", "generate", "inspect"):
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0 and "usage: steerfn" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert sf.__version__ in capsys.readouterr().out


def test_a_vector_of_another_model_warns_or_is_refused(demo, tmp_path):
    other = {"name": "other/model", "fingerprint": "0" * 16, "d_model": 576, "n_layers": 30}
    sf.save(sf.SteeringVector({sf.resid_post[14]: torch.ones(576)}, {"model": other}), tmp_path / "v.safetensors")
    loose = run("generate", "Hi", "--vector", "v.safetensors", "--max-new-tokens", 2, cwd=tmp_path)
    assert loose.returncode == 0 and loose.stderr.count("warning: The vector was made from 'other/model'") == 1
    strict = run("generate", "Hi", "--vector", "v.safetensors", "--strict", cwd=tmp_path)
    assert strict.returncode == 2 and "pass strict=False" in strict.stderr
