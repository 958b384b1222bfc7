"""A stream that steering makes infinite warns once, and only then."""

import warnings

import pytest
import torch
from families import build
from steering import token_ids, vector_at
from torch.nn.attention import SDPBackend, sdpa_kernel

import steerfn as sf
from steerfn.operators._overflow import Overflow


def caught(run):
    with warnings.catch_warnings(record=True) as found, torch.no_grad():
        warnings.simplefilter("always", sf.SteerWarning)
        run()
    return [str(each.message) for each in found if issubclass(each.category, sf.SteerWarning)]


def test_pitfall_47_a_half_precision_stream_that_overflows_warns_once():
    model, ids = build("llama").half(), token_ids()
    v = vector_at(model, sf.resid_post[1])

    def steered(op, **kwargs):
        with sf.steer(model, op, **kwargs):
            model(ids)
            model(ids)

    [text] = caught(lambda: steered(v, alpha=1e5))
    assert text.startswith("Steering made the hidden state at resid_post[1] infinite or not a number")
    assert "torch.float16 holds numbers up to 65504" in text
    for op in (sf.clamp(v, 1e6), sf.scheduled(sf.add(v), lambda t: t * torch.nan)):
        assert len(caught(lambda op=op: steered(op))) == 1
    assert len(caught(lambda: sf.functional(model)(sf.add(v, 1e5), ids))) == 1
    assert caught(lambda: steered(v, alpha=2.0)) == []


def test_what_was_infinite_before_is_not_blamed_on_steering():
    model = build("llama").half()
    v = vector_at(model, sf.resid_post[1])
    big = torch.full((1, 3, 32), torch.inf)
    overflow = Overflow()
    assert caught(lambda: overflow.note("resid_post[1]", big, big + v[1])) == []
    assert len(caught(lambda: overflow.note("resid_post[1]", torch.zeros(1, 3, 32), big))) == 1


def test_inside_transforms_nothing_is_looked_at(tiny):
    v, ids = vector_at(tiny, sf.resid_post[1]), token_ids()
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.func.vmap(lambda a: sf.functional(tiny)(sf.add(v, a), ids).logits)(torch.tensor([0.0, torch.nan]))
    assert found[0].isfinite().all() and found[1].isnan().any()


@pytest.mark.parametrize("length", [torch.nan, 2.5, True, "2", [], -1, [1, -2], torch.ones(2, 2, dtype=torch.long)])
def test_a_prompt_length_is_a_whole_number_for_each_row(tiny, length):
    v, ids = vector_at(tiny, sf.resid_post[1]), token_ids()
    for run in (
        lambda: sf.steer(tiny, v, prompt_length=length).__enter__(),
        lambda: sf.functional(tiny)(sf.add(v), ids, prompt_length=length),
        lambda: sf.Info.of(torch.zeros(2, 3, 4), prompt_length=length),
    ):
        with pytest.raises(sf.ShapeError, match="^prompt_length "):
            run()
