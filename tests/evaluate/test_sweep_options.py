"""Pitfall 26: every option of `sweep` and `score` has a call in which it changes what happens."""

import functools

import pytest
from families import shared
from options import assert_changes, count_passes, files_left, optional
from steering import vector
from words import words

import steerfn as sf

PROMPTS = ["a b c", "d e", "b a e f"]
V = vector(sf.resid_post[0], sf.resid_post[1])
CHOICES = [" a", " b c"]


def table(model=None, **options):
    options = {"alphas": [0, 3], "max_new_tokens": 4, "progress": False, **options}
    model = shared("llama") if model is None else model
    return sf.sweep(model, words(template=True), PROMPTS, V, **options)


@functools.cache
def usual():
    """The records of a sweep without options."""
    return table().records()


def texts(**options):
    return table(**options).records() if options else usual()


def numbers(**options):
    return texts(continuations=CHOICES, **options)


def scores(**options):
    return sf.score(shared("llama"), words(template=True), PROMPTS, CHOICES, progress=False, **options)


def left(checkpoint):
    return files_left(functools.partial(table, max_new_tokens=1, batch_size=1), checkpoint)


def length(found):
    return [float(len(text)) for text in found]


def scored(**options):
    return count_passes(lambda m: sf.score(m, words(), PROMPTS, CHOICES, sf.add(V), progress=False, **options))


SAMPLE = {"do_sample": True, "seed": 0}

CASES = {
    sf.sweep: {
        "alphas": (texts, lambda: texts(alphas=[0, 4])),
        "sites": (texts, lambda: texts(sites=[0, 1])),
        "scope": (numbers, lambda: numbers(scope=sf.prompt)),
        "make": (numbers, lambda: numbers(make=sf.rotate)),
        "continuations": (texts, numbers),
        "correct": (numbers, lambda: numbers(correct=1)),
        "metrics": (texts, lambda: texts(metrics=[length])),
        "max_new_tokens": (texts, lambda: texts(max_new_tokens=2)),
        "seed": (lambda: texts(**SAMPLE), lambda: texts(**SAMPLE | {"seed": 1})),
        "chat": (texts, lambda: texts(chat=False)),
        "batch_size": (lambda: count_passes(table), lambda: count_passes(lambda m: table(m, batch_size=1))),
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
    sf.score(shared("llama"), words(), PROMPTS, CHOICES)
    assert "Scoring" in capsys.readouterr().err
    table()
    assert not capsys.readouterr().err
