"""`sf.steer(...)` that nobody opens steers nothing, and says so at its line; what is opened, or raised, is silent."""

import contextlib
import subprocess
import sys
import warnings

import pytest
from steering import vector

import steerfn as sf

V = vector(sf.resid_post[1])


def caught(call, *arguments):
    """The warnings of a call, once what it left is gone."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with contextlib.suppress(ZeroDivisionError):
            call(*arguments)
    return found


def statement(model):
    sf.steer(model, V, alpha=2.0)


def forgotten(model):
    context = sf.steer(model, V, alpha=2.0)
    return model is context


def replaced(model):
    context = sf.steer(model, V, alpha=2.0)
    context = model
    return context


@pytest.mark.parametrize("mistake", [statement, forgotten, replaced])
def test_what_was_never_opened_is_told_at_its_line(tiny, mistake):
    [found] = caught(mistake, tiny)
    assert found.category is sf.SteerWarning and "write `with sf.steer(...):`" in str(found.message)
    assert (found.filename, found.lineno) == (__file__, mistake.__code__.co_firstlineno + 1)


def opened(model):
    with sf.steer(model, V):
        pass


def opened_later(model):
    kept = {"happy": sf.steer(model, V)}
    with kept["happy"], contextlib.ExitStack() as stack:
        stack.enter_context(sf.steer(model, V))


def refused(model):
    with contextlib.suppress(sf.SiteError), sf.steer(model, vector(sf.resid_post[99])):
        pass


def an_argument_raises(model):
    with sf.steer(model, V, alpha=1 / 0):
        pass


@pytest.mark.parametrize("use", [opened, opened_later, refused, an_argument_raises])
def test_nothing_else_is(tiny, use):
    assert not caught(use, tiny)


def test_it_shows_whether_it_is_open(tiny):
    context = sf.steer(tiny, V)
    assert "not open: it steers inside `with sf.steer(...):`" in repr(context)
    with context:
        assert repr(context).endswith("open>") and "not open" not in repr(context)


@pytest.mark.heavy
def test_nothing_is_said_when_the_interpreter_ends():
    code = "import torch, steerfn as sf; c = sf.steer(None, sf.SteeringVector({sf.resid_post[1]: torch.ones(4)}))"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "SteerWarning" not in done.stderr
