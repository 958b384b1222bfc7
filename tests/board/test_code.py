"""The code and the commands that a state gives: run as they are, they give what the page shows."""

import base64
import contextlib
import io
import re
import shlex
import subprocess

import pytest
from families import build
from small_zoo import fill
from steering import vector
from words import words

import steerfn as sf
from steerfn.board import Presets, Push, Source, State, to_command, to_python
from steerfn.board._compare import converse
from steerfn.board._look import look_html
from steerfn.board._strength import strengths
from steerfn.cli import main

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
BOTH = (Push("up", 2.0, "resid_post[1]"), Push("down", -1.0, scope="generated"))
ONE = (Push("down", -1.5, scope="generated"),)
ZOO = (Push("zoo:calm", 1.5),)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with two vectors, in which the demo model is a tiny one: the model, its vectors and their source."""
    model, tokenizer = build("llama"), words(template=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda **_: (model, tokenizer))
    (tmp_path / "my vectors").mkdir()
    sf.save(vector(sf.resid_post[1], sf.resid_post[2], scale=2.0), "my vectors/up.safetensors")
    sf.save(vector(sf.resid_post[1], seed=1, scale=2.0), "my vectors/down.safetensors")
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr("steerfn.zoo._entries.OURS", fill(tmp_path / "zoo", model))
    presets = Presets("my vectors", model)
    return model, tokenizer, presets, Source(folder="my vectors", files=presets.files())


def executed(state, source):
    """What the code of a state prints and defines."""
    out, names = io.StringIO(), {}
    with contextlib.redirect_stdout(out):
        exec(to_python(state, source), names)
    return out.getvalue(), names


def ran(state, source, capsys):
    """What the commands of a state print: those of steerfn run here, what makes their files in a shell."""
    command = to_command(state, source)
    for line in command.splitlines() if state.view == "make" else [command]:
        if not line.startswith("steerfn "):
            subprocess.run(["bash", "-c", line], check=True)
            continue
        assert main([*shlex.split(line)[1:], "--quiet"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("steering", [(), ONE, BOTH, ZOO, (*ONE, *ZOO)])
@pytest.mark.parametrize("more", [{}, {"sample": True, "seed": 3}, {"chat": False}])
def test_a_comparison(home, capsys, steering, more):
    model, tokenizer, presets, source = home
    state = State(steering=steering, turns=('a "b" \\ c',), max_new_tokens=6, **more)
    *_, shown = converse(model, tokenizer, presets, state)
    out, names = executed(state, source)
    comparison = names["comparison"]
    assert (shown[0].unsteered, shown[0].steered) == (comparison.before[0], comparison.after[0])
    assert (comparison.before != comparison.after) == bool(steering)
    command = ran(state, source, capsys)
    assert comparison.before[0].strip() in command and comparison.after[0].strip() in command
    if len(steering) != 1:  # a single vector is named by the command, an operator by the code
        assert command.strip() == out.strip()


@pytest.mark.parametrize("sample", [False, True])
def test_a_conversation_goes_on_from_each_sides_own_answers(home, capsys, tmp_path, sample):
    model, tokenizer, presets, source = home
    state = State(steering=BOTH, turns=("a b", "c"), max_new_tokens=5, sample=sample, seed=2)
    *_, shown = converse(model, tokenizer, presets, state)
    _, names = executed(state, source)
    for side in ("unsteered", "steered"):
        said = [each["content"] for each in names[side] if each["role"] == "assistant"]
        assert said == [getattr(each, side) for each in shown]
    assert "Wrote result.html." in ran(state, source, capsys)
    page = re.sub("<[^>]*>", "", (tmp_path / "result.html").read_text())
    assert all(each.steered in page and each.unsteered in page for each in shown)


def test_strengths(home, capsys, tmp_path):
    model, tokenizer, presets, source = home
    state = State(
        "strength", BOTH, focus="up", alphas=(-1.0, 0.0, 1.5), prompts=("a b", "c d"), max_new_tokens=4, sample=True,
        metrics=("length",),
        seed=1,
    )  # fmt: skip
    table = strengths(model, tokenizer, presets, state)
    out, names = executed(state, source)
    assert names["table"].texts == table.texts and [c.sites for c in table.configs][0] == ("resid_post[1]",)
    assert (tmp_path / "length.png").is_file()
    assert str(names["table"]).strip() in out and out.strip() in ran(state, source, capsys)


def test_the_strengths_of_a_vector_of_the_zoo(home, capsys):
    model, tokenizer, presets, source = home
    state = State("strength", ZOO, alphas=(0.0, 1.5), prompts=("a b",), max_new_tokens=3, metrics=("length",))
    table = strengths(model, tokenizer, presets, state)
    out, names = executed(state, source)
    assert 'sf.zoo.load("calm", model=model)' in to_python(state, source)
    assert names["table"].texts == table.texts and out.strip() in ran(state, source, capsys)


def test_what_is_looked_at(home, capsys, tmp_path):
    model, tokenizer, presets, source = home
    state = State("look", BOTH, text="a b c d", tokens=3)
    shown = look_html(model, tokenizer, presets, state)
    drawn = [base64.b64decode(each).decode() for each in re.findall(r"svg\+xml;base64,([^\"]+)", shown)]
    assert len(drawn) == 2 and not any("fill: #ffffff" in each.partition('<g id="patch_2">')[0] for each in drawn)
    out, _ = executed(state, source)
    assert {"next_token.png", "resid_post[1].png"} <= {each.name for each in tmp_path.iterdir()}
    site, push, stream = out.split()
    assert site == "resid_post[1]" and f"{float(push):.3g}" in shown and f"{float(stream):.3g}" in shown
    ran(state, source, capsys)
    assert "Next token after 3 of 5 tokens" in (tmp_path / "result.html").read_text() or "<svg" not in shown


@pytest.mark.parametrize(
    "texts", [{"dataset": "sentiment"}, {"positive": ("a b", "it's c"), "negative": ("d", "-e f")}]
)
def test_a_vector(home, capsys, texts):
    _, _, _, source = home
    state = State("make", name="made", layer=1, **texts)
    _, names = executed(state, source)
    made = sf.load("my vectors/made.safetensors")
    assert made.identical(names["v"])
    sf.values.files.remove("my vectors/made.safetensors")
    ran(state, source, capsys)
    assert sf.load("my vectors/made.safetensors").allclose(made)


@pytest.mark.parametrize("prompt", ["-2", "7", "--help", "two\nlines", "it's", "$HOME `ls`", "«é» 你好"])
def test_every_prompt_reaches_the_command_whole(home, capsys, prompt):
    model, tokenizer, presets, source = home
    state = State(steering=ONE, turns=(prompt,), max_new_tokens=3)
    *_, shown = converse(model, tokenizer, presets, state)
    out = ran(state, source, capsys)
    assert shown[0].steered.strip() in out or "Wrote result.html." in out


def test_a_model_and_vectors_in_memory_are_named_as_they_were_given():
    source = Source("org/name", {"dtype": "float32"})
    code = to_python(State(steering=(Push("up"),), turns=("a",)), source)
    assert 'sf.from_pretrained("org/name", dtype="float32")' in code and 'sf.add(vectors["up"], 1.0)' in code
    command = to_command(State(steering=(Push("up"),), turns=("a",)), source)
    assert "--vector up.safetensors" in command and command.endswith("--model org/name --dtype float32")


def test_a_mistake_is_one_line(home, capsys):
    for words_, message in (
        (["compare", "a"], "compare needs --vector FILE, or --steering JSON"),
        (["compare", "a", "--steering", "x"], "must be a JSON list such as"),
        (["compare", "a", "--steering", "[]", "--alpha", "2"], "--alpha and --scope go with --vector"),
        (["dashboard", "--host", "0.0.0.0"], "where others can reach it, needs keys"),
        (["dashboard", "--state", "x.json"], "Cannot read the state in 'x.json'"),
        (["dashboard", "--state", "colour=red"], "has no field 'colour'"),
        (["dashboard", "--port", "70000"], "must be an integer from 0 to 65535"),
    ):
        assert main([*words_, "--quiet"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and message in err
