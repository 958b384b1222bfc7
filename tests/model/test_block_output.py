"""Blocks and sublayers that return a tuple, a named tuple, a dict, a dataclass or a ModelOutput."""

import collections
import dataclasses

import pytest
import torch
from families import build
from snapshot import assert_same_bits, same_bits
from steering import token_ids, vector_at
from transformers.modeling_outputs import BaseModelOutput

import steerfn as sf
from steerfn.model._block_output import hidden_of, with_hidden

Named = collections.namedtuple("Named", "state extra")


@dataclasses.dataclass(frozen=True)
class Frozen:
    extra: str
    hidden_states: torch.Tensor


KINDS = {
    "tuple": lambda h: (h, "extra"),
    "list": lambda h: [h, "extra"],
    "named tuple": lambda h: Named(h, "extra"),
    "dict": lambda h: {"extra": "extra", "hidden_states": h},
    "dict of other names": lambda h: {"state": h, "extra": "extra"},
    "ModelOutput": lambda h: BaseModelOutput(last_hidden_state=h, attentions=(h + 1,)),
    "dataclass": lambda h: Frozen("extra", h),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_found_and_replaced_and_nothing_else_changes(kind):
    hidden, other = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    out = KINDS[kind](hidden)
    made = with_hidden(out, other)
    assert hidden_of(out) is hidden and hidden_of(made) is other
    assert type(made) is type(out)
    assert with_hidden(out, hidden) is out
    if kind == "ModelOutput":
        assert (
            made.last_hidden_state is other
            and made["last_hidden_state"] is made[0]
            and made.attentions is out.attentions
        )
    else:
        assert "extra" in (
            made if isinstance(made, (tuple, list)) else dict(made if isinstance(made, dict) else vars(made)).values()
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", [sf.resid_post[1], sf.mlp_out[1], sf.resid_mid[1]], ids=str)
def test_a_module_that_returns_it_is_steered_and_read(kind, site):
    """Against the same model whose block and sublayers return what they do in transformers."""
    plain, model = build("llama"), build("llama")
    v = vector_at(plain, site)
    for module in (model.model.layers[1], model.model.layers[1].mlp):
        kind_of = type(module)

        class Returning(kind_of):
            def forward(self, *args, **kwargs):
                out = super().forward(*args, **kwargs)
                return KINDS[kind](out[0] if isinstance(out, tuple) else out)

        module.__class__ = Returning

    block = model.model.layers[1]
    read_block, read_mlp = type(model.model.layers[1]).__call__, type(block.mlp).__call__
    type(block).__call__ = lambda self, *args, **kwargs: hidden_of(read_block(self, *args, **kwargs))
    type(block.mlp).__call__ = lambda self, *args, **kwargs: hidden_of(read_mlp(self, *args, **kwargs))
    with torch.no_grad():
        before = plain(token_ids()).logits
        with sf.steer(plain, v):
            expected = plain(token_ids()).logits
        with sf.steer(model, v):
            found = model(token_ids()).logits
            read = sf.capture(model, site)(token_ids())[1][site]
        assert_same_bits(found, expected)
        assert not same_bits(found, before)
        with sf.steer(plain, v):
            assert_same_bits(read, sf.capture(plain, site)(token_ids())[1][site])


def test_an_output_without_a_state_is_refused_in_a_sentence():
    for out in ({}, {"state": None}, (), (None,), "text", object()):
        with pytest.raises(sf.ModelError, match="no hidden state is known"):
            hidden_of(out)
