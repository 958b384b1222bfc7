"""Pitfall 26: every option of `sweep` and `score` has a call in which it changes what happens."""

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from families import build
from options import assert_changes, optional
from steering import vector
from words import words

import steerfn as sf

PROMPTS = ["a b c", "d e", "b a e f"]
V = vector(sf.resid_post[0], sf.resid_post[1])
CHOICES = [" a", " b c"]


def table(model=None, **options):
    options = {"alphas": [0, 3], "max_new_tokens": 4, "progress": False, **options}
    model = build("llama") if model is None else model
    return sf.sweep(model, words(template=True), PROMPTS, V, **options)


def texts(**options):
    return table(**options).records()


def numbers(**options):
    return texts(continuations=CHOICES, **options)


def scores(**options):
    return sf.score(build("llama"), words(template=True), PROMPTS, CHOICES, progress=False, **options)


def passes(call):
    """How many forward passes a call takes."""
    model, seen = build("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    call(model)
    return len(seen)


def left(checkpoint):
    """The files that an interrupted sweep leaves."""
    model = build("llama")
    calls = iter([None])

    def interrupt(*_):
        if next(calls, "second") == "second":
            raise KeyboardInterrupt

    model.model.embed_tokens.register_forward_hook(interrupt)
    with TemporaryDirectory() as folder:
        with contextlib.suppress(KeyboardInterrupt):
            table(model, max_new_tokens=1, batch_size=1, checkpoint=Path(folder, "run") if checkpoint else None)
        return [path.name for path in Path(folder).iterdir()]


def length(found):
    return [float(len(text)) for text in found]


def scored(**options):
    return passes(lambda m: sf.score(m, words(), PROMPTS, CHOICES, sf.add(V), progress=False, **options))


SAMPLE = {"do_sample": True, "seed": 0}

CASES = {
    sf.sweep: {
        "alphas": (texts, lambda: texts(alphas=[0, 4])),
        "sites": (texts, lambda: texts(sites=[0, 1])),
        "scope": (numbers, lambda: numbers(scope=sf.prompt)),
        "operator": (numbers, lambda: numbers(operator=sf.rotate)),
        "continuations": (texts, numbers),
        "targets": (numbers, lambda: numbers(targets=1)),
        "metrics": (texts, lambda: texts(metrics=[length])),
        "max_new_tokens": (texts, lambda: texts(max_new_tokens=2)),
        "seed": (lambda: texts(**SAMPLE), lambda: texts(**SAMPLE | {"seed": 1})),
        "chat": (texts, lambda: texts(chat=False)),
        "batch_size": (lambda: passes(table), lambda: passes(lambda m: table(m, batch_size=1))),
        "checkpoint": (lambda: left(False), lambda: left(True)),
    },
    sf.score: {
        "alpha": (lambda: scores(op=V), lambda: scores(op=V, alpha=3.0)),
        "op": (scores, lambda: scores(op=3 * V)),
        "chat": (scores, lambda: scores(chat=False)),
        "batch_size": (scored, lambda: scored(batch_size=1)),
    },
}
NAMED = [(function, option) for function, options in CASES.items() for option in options]


@pytest.mark.parametrize(("function", "option"), NAMED, ids=lambda x: getattr(x, "__name__", x))
def test_pitfall_26_an_option_changes_the_result(function, option):
    assert_changes(*CASES[function][option])


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_pitfall_26_no_option_is_left_out(function):
    assert optional(function) - set(CASES[function]) <= {"progress"}


def test_pitfall_26_progress_shows_a_bar(capsys):
    table(progress=True)
    assert "Generating" in capsys.readouterr().err
    sf.score(build("llama"), words(), PROMPTS, CHOICES)
    assert "Scoring" in capsys.readouterr().err
    table()
    assert not capsys.readouterr().err
