"""`steerfn sweep`: what it prints and writes is what `sf.sweep` gives; a mistake is one line and exit code 2."""

import json
import math

import pytest
from steering import vector
from words import words

import steerfn as sf
from steerfn.cli import main
from steerfn.metrics._metric import _registry
from steerfn.run._scorer import Scorer

V, W = vector(sf.resid_post[0], sf.resid_post[1]), vector(sf.resid_post[0], sf.resid_post[1], seed=1)
PROMPTS = ["a b c", "d e", "f g h", "i"]


@pytest.fixture
def at_home(tiny, tmp_path, monkeypatch):
    """A folder with two vectors, in which the model is the tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerfn.demo_model", lambda **_: (tiny, words(template=True)))
    (tmp_path / "old").mkdir()
    sf.save(V, "v.safetensors")
    sf.save(W, "w.safetensors")
    sf.save(W, "old/v.safetensors")
    return tiny


def told(capsys, *arguments):
    code = main(["sweep", *map(str, arguments), "--quiet"])
    found = capsys.readouterr()
    return code, found.out, found.err


def swept(model, v, alphas, chat=None, **options):
    return sf.sweep(model, words(template=True), PROMPTS, v, alphas, chat=chat, progress=False, **options)


def test_scores_of_every_vector_layer_and_strength(at_home, tmp_path, capsys):
    code, out, err = told(
        capsys, *PROMPTS, "--vector", "v.safetensors", "--vector", "w.safetensors", "--alphas", "-2,0,3",
        "--layers", "0,1",
        "--scope", "generated", "--choice", " a", "--choice", " b c", "--raw", "--out", "table.json",
    )  # fmt: skip
    options = {"sites": [0, 1], "scope": sf.generated, "continuations": [" a", " b c"]}
    expected = swept(at_home, {"v": V, "w": W}, [-2, 0, 3], chat=False, **options)
    assert (code, err) == (0, "")
    assert out == f"{expected}\n\nWrote table.json.\n\nbest: {expected.best('propensity')}\n"
    document = json.loads((tmp_path / "table.json").read_text())
    assert [row["log_probs"] for row in document["records"]] == [
        pytest.approx(row["log_probs"], abs=1e-4) for row in expected.records()
    ]


def test_the_suffix_says_in_which_form_the_table_is_written(at_home, tmp_path, capsys):
    choices = [*PROMPTS, "--vector", "v.safetensors", "--alphas", "0,2", "--choice", "a", "--choice", "b"]
    table = swept(at_home, {"v": V}, [0, 2], continuations=["a", "b"])
    forms = {"t.csv": table.to_csv, "t.MD": table.to_markdown, "t.html": table.to_html, "t.json": table.to_json}
    for name, form in forms.items():
        code, out, err = told(capsys, *choices, "--out", name)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert (code, err) == (0, "") and f"Wrote {name}." in out
        assert text[:40] == form()[:40] and len(text.splitlines()) == len(form().splitlines())
    code, out, err = told(capsys, *choices, "--out", "t.txt")
    assert (code, out) == (2, "") and not (tmp_path / "t.txt").exists()
    assert "cannot be written to 't.txt': its suffix says the form, and is one of .csv, .html, .json, .md." in err


def test_another_metric_and_the_lowest(at_home, capsys):
    given = [
        *PROMPTS,
        "--vector",
        "v.safetensors",
        "--alphas",
        "-2,2",
        "--choice",
        "a",
        "--choice",
        "b",
        "--by",
        "log_prob",
    ]
    expected = swept(at_home, {"v": V}, [-2, 2], continuations=["a", "b"])
    assert told(capsys, *given)[1].endswith(f"best: {expected.best('log_prob')}\n")
    assert told(capsys, *given, "--lowest")[1].endswith(f"best: {expected.best('log_prob', lowest=True)}\n")
    assert expected.best("log_prob").config != expected.best("log_prob", lowest=True).config


def test_texts_by_metrics_of_which_lower_may_be_better(at_home, capsys, monkeypatch):
    few = sf.metrics.Metric("few", lambda texts: [float(len(text)) for text in texts], better="lower")
    monkeypatch.setitem(_registry, "few", few)
    given = [*PROMPTS, "--vector", "v.safetensors", "--alphas", "0,3", "--max-new-tokens", 6, "--site", "resid_post[1]"]
    options = {"sites": ["resid_post[1]"], "metrics": ["few", "length"], "max_new_tokens": 6}
    expected = swept(at_home, {"v": V}, [0, 3], **options)
    most, least = expected.best("few"), expected.best("few", lowest=True)
    assert most.config != least.config
    assert told(capsys, *given, "--metric", "few,length")[1] == f"{expected}\n\nbest: {least}\n"
    by_length = told(capsys, *given, "--metric", "few", "--metric", "length", "--by", "length")[1]
    assert by_length == f"{expected}\n\nbest: {expected.best('length')}\n"


def test_the_table_is_written_where_nothing_is_best(at_home, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(_registry, "none", sf.metrics.Metric("none", lambda texts: [math.nan] * len(texts)))
    given = [*PROMPTS, "--vector", "v.safetensors", "--max-new-tokens", 2, "--metric", "none", "--out", "table.json"]
    code, out, err = told(capsys, *given)
    assert (
        code == 2 and "Wrote table.json." in out and "'none' is a finite number for too few prompts to choose by" in err
    )
    assert len(json.loads((tmp_path / "table.json").read_text())["records"]) == 5 * len(PROMPTS)


def test_those_who_ask_for_no_metric_get_no_best(at_home, capsys):
    code, out, _ = told(capsys, *PROMPTS, "--vector", "v.safetensors", "--alphas", 1, "--max-new-tokens", 2)
    assert code == 0 and "best" not in out and out.startswith("1 configurations x 4 prompts")


def test_samples_with_a_seed(at_home, tmp_path, capsys):
    given = [*PROMPTS, "--vector", "v.safetensors", "--alphas", "0,2", "--max-new-tokens", 5, "--out", "t.json"]
    texts = []
    for more in ([], ["--sample"], ["--sample", "--seed", 1]):
        assert told(capsys, *given, *more)[0] == 0
        texts.append([row["text"] for row in json.loads((tmp_path / "t.json").read_text())["records"]])
    assert texts[0] != texts[1] != texts[2] != texts[0]
    expected = swept(at_home, {"v": V}, [0, 2], max_new_tokens=5, do_sample=True, seed=1)
    assert texts[2] == [row["text"] for row in expected.records()]


def test_an_interrupted_sweep_goes_on(at_home, tmp_path, capsys, monkeypatch):
    given = [*PROMPTS, "--vector", "v.safetensors", "--choice", "a", "--choice", "b", "--checkpoint", "run.json"]
    monkeypatch.setattr(Scorer, "batches", lambda self: [[i] for i in range(len(self.items))])
    passes, stop = [], None

    def count(*_):
        passes.append(1)
        if len(passes) == stop:
            raise KeyboardInterrupt

    at_home.model.embed_tokens.register_forward_hook(count)
    told(capsys, *given)  # asks once what the model can
    passes.clear()
    whole = told(capsys, *given)
    total, stop = len(passes), len(passes)
    passes.clear()
    assert told(capsys, *given)[0] == 130 and (tmp_path / "run.json").exists()
    passes.clear()
    assert told(capsys, *given) == whole and len(passes) < total and not (tmp_path / "run.json").exists()


def test_vectors_of_one_name_are_told_apart_by_their_folders(at_home, capsys):
    files = ["v.safetensors", "old/v.safetensors"]
    code, out, _ = told(
        capsys,
        *PROMPTS,
        *[word for file in files for word in ("--vector", file)],
        "--alphas",
        1,
        "--choice",
        "a",
        "--choice",
        "b",
    )
    assert code == 0 and "\nv.safetensors  2 sites" in out and "\nold/v.safetensors  2 sites" in out


@pytest.mark.filterwarnings("always::steerfn.SteerWarning")  # the command line prints them
def test_a_continuation_glued_to_the_prompt_is_warned_of(at_home, capsys):
    given = [*PROMPTS, "--vector", "v.safetensors", "--alphas", 1, "--raw"]
    code, _, err = told(capsys, *given, "--choice", "good", "--choice", "bad")
    assert code == 0 and err == (
        "steerfn: warning: The continuation 'good' follows the prompt without a blank, as in 'a b cgood'; write "
        "' good' if it is a word of its own.\n"
    )
    assert told(capsys, *given, "--choice", " a", "--choice", " b")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vector", "none.safetensors"], "Cannot load 'none.safetensors': there is no such file"),
        (
            ["--vector", "v.safetensors", "--vector", "v.safetensors"],
            "--vector names a file twice: v.safetensors v.safetensors",
        ),
        (["--vector", "v.safetensors", "--choice", "a"], "--choice is needed at least twice"),
        (
            ["--vector", "v.safetensors", "--choice", "a", "--choice", "b", "--metric", "length"],
            "--metric goes with generated texts",
        ),
        (
            ["--vector", "v.safetensors", "--choice", "a", "--choice", "b", "--sample"],
            "--sample goes with generated texts",
        ),
        (["--vector", "v.safetensors", "--alphas", "1,1"], "alphas contains a strength twice: [1.0, 1.0]"),
        (["--vector", "v.safetensors", "--layers", "9"], "9"),
        (["--vector", "v.safetensors", "--metric", "lenght"], "There is no metric 'lenght'; did you mean 'length'?"),
        (
            ["--vector", "v.safetensors", "--choice", "a", "--choice", "b", "--by", "x"],
            "--by names 'x', which this sweep does not measure; it has propensity,",
        ),
        (["--vector", "v.safetensors", "--max-new-tokens", "0"], "--max-new-tokens is 0; use 1 or more."),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(at_home, arguments, message, capsys):
    code, _, err = told(capsys, *PROMPTS, *arguments)
    assert code == 2 and err.startswith("steerfn: ") and message in err and len(err.strip().splitlines()) == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        main(["sweep", "--help"])
    assert left.value.code == 0 and "usage: steerfn sweep" in capsys.readouterr().out
