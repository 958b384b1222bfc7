"""Everything that has a test of its own, crossed: sites, operators, scopes, caches, padding, wrapping, threads.

Hypothesis draws a case (`matrix/case.py`); plain torch hooks (`by_hand.py`) on another copy of the model say what is
right, each row alone, without padding and without a cache. On the way the model is seen to be bit for bit itself:
inside at strength 0, in another thread, when a nested context has closed, and afterwards.

A few cases run by default, some hundred with `-m heavy`, thousands under `HYPOTHESIS_PROFILE=thorough`.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from by_hand import Step
from hypothesis import given, settings
from matrix import draw, gradients
from matrix.case import Case, nothing, of_program, operator, vector
from matrix.draw import drawn
from matrix.models import Subject, reference, subject, trainee
from matrix.right import assert_equal, assert_rows, assert_same_pass, by_hooks
from matrix.run import run
from snapshot import Snapshot, assert_unchanged
from torch import Tensor

import steerfn as sf

Results = list[Tensor]

# Time to shrink a case that fails.
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore:The scope:steerfn.SteerWarning"),
    pytest.mark.skipif(
        int(transformers.__version__.split(".")[0]) < 5,
        reason="transformers 4 itself computes rows of some padded batches otherwise than alone",
    ),
]
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def examples(count: int) -> settings:
    return settings(max_examples=settings.default.max_examples if THOROUGH else count)


def check(case: Case) -> bool:
    """Everything that must hold of a case; whether its steering changed anything."""
    who = subject(case.family, case.dtype, case.lora)
    if case.compiled:
        torch._dynamo.reset()
        who = Subject(case.family, case.dtype, case.lora, watched=False)
    called = _compiled(case, who)

    def go() -> Results:
        return run(case, called(), who.model)

    plain = go()
    before = Snapshot.of(who.model)  # after a first run, in which transformers leaves notes of its own
    assert_rows(case, plain, by_hooks(case, [()] * len(case.lengths)), "unsteered, so transformers itself")

    def steered(op: sf.Operator, nested: bool) -> Results:
        return _pure(case, who, op, nested) if case.face == "functional" else _inside(case, who, go, op, nested)

    try:
        assert_equal(steered(nothing(case), nested=False), plain, "at strength 0")
        with _beside(case, who, go, plain):
            results = steered(operator(case), nested=True)
    except sf.SteerError:
        if not _is_refused(case):
            raise
        results = plain
    else:
        _compare(case, who, results)
    assert_equal(go(), plain, "afterwards")
    assert_unchanged(who.model, before)
    return any(not torch.equal(a, b) for a, b in zip(results, plain, strict=True))


def _is_refused(case: Case) -> bool:
    """Whether a context on the backbone must know what only the whole model's `generate` knows.

    That is where the prompt ends, and which rows hold one prompt. It says so.
    """
    scopes = {step.scope for program in case.rows() for step in program}
    copied = len(case.programs) > 1 and case.decoding in ("beams", "returned")
    return case.way == "generate" and case.steered == "backbone" and (copied or scopes != {"everywhere"})


def _compare(case: Case, who: Subject, results: Results) -> None:
    """What came out steered with what is right."""
    programs = case.rows(nested=case.face == "steer")  # an open context does not reach the pure view
    assert_rows(case, results, by_hooks(case, programs), "steered")
    if case.way == "forward" and not case.cuts and not case.cache and not case.compiled:
        assert_same_pass(case, results, programs)
        if case.face == "steer" and case.steered == case.called and not case.nested:
            assert_equal(_pure(case, who, operator(case), nested=False), results, "context and pure view")


def _compiled(case: Case, who: Subject) -> Callable[[], Any]:
    """What is called: reached anew each time, held from before, or compiled before any context opens."""
    held = who.part(case.called)
    if case.compiled == "in place":
        held.compile(backend="eager")
    if case.compiled == "around":
        held = torch.compile(held, backend="eager")
    return (lambda: who.part(case.called)) if case.called == "backbone" and not case.compiled else lambda: held


def _inside(case: Case, who: Subject, go: Callable[[], Results], op: sf.Operator, nested: bool) -> Results:
    """In a context, or in two, of which the inner one closes first."""
    where, length = who.part(case.steered), case.prompt_lengths()
    with sf.steer(where, op, prompt_length=length):
        results = go()
        if not nested or not case.nested:
            return results
        with sf.steer(where, of_program(case.nested, case.wide), prompt_length=length):
            both = go()
        assert_equal(go(), results, "when the nested context has closed")
        return both


def _pure(case: Case, who: Subject, op: sf.Operator, nested: bool) -> Results:
    """Through the pure view, perhaps inside a context."""
    f, length = sf.functional(who.part(case.steered)), case.prompt_lengths()
    inner = of_program(case.nested, case.wide) if nested and case.nested else None
    with sf.steer(who.model, inner) if inner is not None else contextlib.nullcontext():
        return run(case, lambda *args, **kwargs: f(op, *args, prompt_length=length, **kwargs), who.model)


@contextlib.contextmanager
def _beside(case: Case, who: Subject, go: Callable[[], Results], plain: Results) -> Any:
    """Another thread uses the model in the middle of each pass: it gets what it gets alone."""
    if not case.beside:
        yield
        return
    other = sf.add(vector(Step("add", "resid_post", 1, seed=9), torch.float32))

    def job() -> Results:
        with sf.steer(who.model, other) if case.beside == "steered" else contextlib.nullcontext():
            return go()

    alone = job() if case.beside == "steered" else plain
    who.beside.job, who.beside.results = job, []
    try:
        yield
    finally:
        who.beside.job = None
    assert who.beside.results, "the other thread never ran"
    for result in who.beside.results:
        if isinstance(result, BaseException):
            raise result
        assert_equal(result, alone, f"another thread, {case.beside}")


def check_gradients(case: Case) -> bool:
    """Gradients of a direction and of the embeddings are those of hooks by hand without checkpointing."""
    who = trainee(case.family, case.dtype, case.lora, case.checkpointing)
    results = gradients.gradients(case, who, gradients.by_library)
    ref = reference(case.family, case.dtype, case.lora)
    expected = gradients.gradients(case, ref, gradients.by_hooks)
    for name, one in expected.items():
        size, error = float(one.abs().max()), float((results[name] - one).abs().max())
        near = 1e-2 if case.dtype == "float32" else 1e-4
        assert error <= near * size + 1e-9, f"gradient of {name}: off by {error:.2g} of {size:.2g}"
    return bool(expected["the direction"].any())


@examples(25)
@given(case=drawn(draw.forwards))
def test_a_forward_pass_is_what_hooks_by_hand_give(case):
    check(case)


@examples(20)
@given(case=drawn(draw.generations))
def test_a_generation_is_what_hooks_by_hand_give(case):
    check(case)


@examples(20)
@given(case=drawn(draw.trainings))
def test_gradients_are_what_hooks_by_hand_give(case):
    check_gradients(case)


@pytest.mark.heavy
@examples(200)
@given(case=drawn(draw.forwards))
def test_more_forward_passes_are_what_hooks_by_hand_give(case):
    check(case)


@pytest.mark.heavy
@examples(200)
@given(case=drawn(draw.generations))
def test_more_generations_are_what_hooks_by_hand_give(case):
    check(case)


@pytest.mark.heavy
@examples(100)
@given(case=drawn(draw.trainings))
def test_more_gradients_are_what_hooks_by_hand_give(case):
    check_gradients(case)


@pytest.mark.heavy
@examples(6)
@given(case=drawn(draw.forwards, draw.TRACED, True))
def test_a_compiled_forward_pass_is_what_hooks_by_hand_give(case):
    check(case)


@pytest.mark.heavy
@examples(3)
@given(case=drawn(draw.generations, draw.TRACED, True))
def test_a_compiled_generation_is_what_hooks_by_hand_give(case):
    check(case)
