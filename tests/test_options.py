"""Pitfall 26: no option does nothing. Every keyword of every verb has a call here in which it changes what happens."""

import contextlib
import functools
import io
import warnings

import pytest
import torch
from families import shared
from options import assert_changes, count_passes, files_left, optional
from steering import token_ids, vector
from words import words

import steerfn as sf
from steerfn.discover import Workers

V = vector(sf.resid_post[1])
W = vector(sf.resid_post[1], seed=1)
OTHER = V.with_metadata(model={"name": "another", "fingerprint": "0" * 16, "d_model": 32, "n_layers": 3})
POSITIVE, NEGATIVE = ["a b c", "d e"], ["f", "g h i j"]


def logits(*arguments, **options):
    model = shared("llama")
    with torch.no_grad(), sf.steer(model, *arguments, **options):
        return model(token_ids()).logits


def pure(op, **options):
    with torch.no_grad():
        return sf.functional(shared("llama"))(op, token_ids(), **options).logits


def outcome(call):
    """What a call gives, or the class of what it raises or warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return call()
        except (sf.SteerError, sf.SteerWarning) as error:
            return type(error).__name__


def read(**options):
    return sf.activations(shared("llama"), words(template=True), POSITIVE, 1, progress=False, **options)[
        sf.resid_post[1]
    ]


def mean(model=None, **options):
    options = {"progress": False, **options}
    model = shared("llama") if model is None else model
    return sf.mean_difference(model, words(template=True), POSITIVE, NEGATIVE, 1, **options)[1]


def shown(call):
    """What a call prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        call()
    return out.getvalue()


def left(checkpoint):
    return files_left(functools.partial(mean, batch_size=1), checkpoint, before=mean)


class Asked(Workers):
    """Workers that do the work here and note that they were asked."""

    asked = 0

    def run(self, job, model, *, progress=True, kept=None):
        type(self).asked += 1
        return job.run(model, progress=progress)


def asked(**options):
    before = Asked.asked
    mean(**options)
    return Asked.asked - before


def qualities(**options):
    texts = [f"{a} {b}" for a in "abcd" for b in "efgh"]
    v = sf.mean_difference(shared("llama"), words(), texts[::2], texts[1::2], 1, progress=False, **options)
    return v.metadata.get("quality")


def texts(**options):
    return sf.generate(shared("llama"), words(template=True), POSITIVE, **options).token_ids


def pieces(**options):
    return "".join(sf.stream(shared("llama"), words(template=True), "a b", **options))


def applied(op):
    h = torch.arange(8.0).reshape(1, 2, 4)
    return op(h, sf.Info.of(h, sf.resid_post[1]))


U = sf.SteeringVector({sf.resid_post[1]: torch.tensor([1.0, 2.0, 0.0, -1.0])})
X = sf.SteeringVector({sf.resid_post[1]: torch.tensor([0.0, 1.0, 1.0, 0.0])})
SAMPLE = {"do_sample": True, "max_new_tokens": 8}
PARAMS = {n: 2 * p.detach() for n, p in shared("llama").named_parameters()}

# option: two calls that must differ
CASES = {
    sf.steer: {
        "alpha": (lambda: logits(V), lambda: logits(V, 2.0)),
        "scope": (lambda: logits(V), lambda: logits(V, scope=sf.last_prompt_token)),
        "prompt_length": (
            lambda: logits(V, scope=sf.generated),
            lambda: logits(V, scope=sf.generated, prompt_length=2),
        ),
        "strict": (lambda: outcome(lambda: logits(OTHER)), lambda: outcome(lambda: logits(OTHER, strict=True))),
        "on_error": (
            lambda: outcome(lambda: logits(vector(sf.resid_post[9]))),
            lambda: outcome(lambda: logits(vector(sf.resid_post[9]), on_error="baseline")),
        ),
    },
    sf.functional(shared("llama")).__call__: {
        "alpha": (lambda: pure(V), lambda: pure(V, alpha=2.0)),
        "params": (lambda: pure(V), lambda: pure(V, params=PARAMS)),
        "prompt_length": (
            lambda: pure(sf.at(sf.generated, sf.add(V))),
            lambda: pure(sf.at(sf.generated, sf.add(V)), prompt_length=2),
        ),
        "strict": (lambda: outcome(lambda: pure(OTHER)), lambda: outcome(lambda: pure(OTHER, strict=True))),
    },
    sf.activations: {
        "position": (read, lambda: read(position="mean")),
        "chat": (read, lambda: read(chat=True)),
        "batch_size": (
            lambda: count_passes(lambda m: sf.activations(m, words(), POSITIVE, 1, progress=False)),
            lambda: count_passes(lambda m: sf.activations(m, words(), POSITIVE, 1, progress=False, batch_size=1)),
        ),
    },
    sf.mean_difference: {
        "position": (mean, lambda: mean(position="mean")),
        "chat": (mean, lambda: mean(chat=True)),
        "batch_size": (
            lambda: count_passes(lambda m: sf.mean_difference(m, words(), POSITIVE, NEGATIVE, 1, progress=False)),
            lambda: count_passes(
                lambda m: sf.mean_difference(m, words(), POSITIVE, NEGATIVE, 1, progress=False, batch_size=1)
            ),
        ),
        "explain": (lambda: shown(mean), lambda: shown(lambda: mean(explain=True))),
        "checkpoint": (lambda: left(False), lambda: left(True)),
        "workers": (asked, lambda: asked(workers=Asked())),
        "quality": (qualities, lambda: qualities(quality=True)),
        "seed": (lambda: qualities(quality=True), lambda: qualities(quality=True, seed=1)),
        "groups": (lambda: qualities(quality=True), lambda: qualities(quality=True, groups=[0, 0, 1, 1, 2, 2, 2, 2])),
    },
    sf.generate: {
        "alpha": (lambda: texts(op=V), lambda: texts(op=V, alpha=9.0)),
        "op": (texts, lambda: texts(op=3 * V)),
        "max_new_tokens": (texts, lambda: texts(max_new_tokens=3)),
        "seed": (lambda: texts(seed=0, **SAMPLE), lambda: texts(seed=1, **SAMPLE)),
        "chat": (texts, lambda: texts(chat=False)),
        "batch_size": (
            lambda: count_passes(lambda m: sf.generate(m, words(), POSITIVE, max_new_tokens=2)),
            lambda: count_passes(lambda m: sf.generate(m, words(), POSITIVE, max_new_tokens=2, batch_size=1)),
        ),
    },
    sf.stream: {
        "alpha": (lambda: pieces(op=V), lambda: pieces(op=V, alpha=9.0)),
        "op": (pieces, lambda: pieces(op=3 * V)),
        "max_new_tokens": (pieces, lambda: pieces(max_new_tokens=3)),
        "seed": (lambda: pieces(seed=0, **SAMPLE), lambda: pieces(seed=1, **SAMPLE)),
        "chat": (pieces, lambda: pieces(chat=False)),
    },
    sf.add: {"alpha": (lambda: applied(sf.add(U)), lambda: applied(sf.add(U, 2.0)))},
    sf.clamp: {
        "value": (lambda: applied(sf.clamp(U, 1.0)), lambda: applied(sf.clamp(U, 2.0))),
        "min": (lambda: applied(sf.clamp(U, min=0.0)), lambda: applied(sf.clamp(U, min=9.0))),
        "max": (lambda: applied(sf.clamp(U, max=0.0)), lambda: applied(sf.clamp(U, max=-9.0))),
    },
    sf.rotate: {"plane": (lambda: applied(sf.rotate(U, 0.5)), lambda: applied(sf.rotate(U, 0.5, plane=X)))},
    sf.probe: {
        "bias": (
            lambda: applied(sf.when(sf.probe(U), sf.add(U))),
            lambda: applied(sf.when(sf.probe(U, -99.0), sf.add(U))),
        )
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
    mean(progress=True)
    assert "Reading activations" in capsys.readouterr().err
    mean()
    assert not capsys.readouterr().err
