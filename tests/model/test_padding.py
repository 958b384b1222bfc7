"""Models that read the padding of a batch by transformers' own doing: a warning, or one prompt at a time."""

import warnings
from typing import Any

import pytest
import torch
from families import FAMILIES, build
from steering import token_ids, vector_at
from words import words

import steerfn as sf
from steerfn.model._padding import READ_PADS, reads_pads

READING = [name for name in ("rwkv", "recurrent_gemma", "minimax", "xlnet", "bart") if name in FAMILIES]


def padded():
    ids = token_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids.masked_fill(mask == 0, 0), mask


@pytest.mark.parametrize("family", READING)
def test_rows_of_such_a_model_are_not_what_they_are_alone(family):
    """If this fails, transformers has mended the model, and it leaves the table."""
    model: Any = build(family)
    ids, mask = padded()
    options: dict[str, Any] = {
        "max_new_tokens": 2,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    together = model.generate(ids, attention_mask=mask, **options).logits
    row = ids[1:, 4:]
    alone = model.generate(row, attention_mask=torch.ones_like(row), **options).logits
    gaps = [(a[1] - b[0]).norm() / b[0].norm() for a, b in zip(together, alone, strict=True)]
    assert max(gaps) > 1e-2


@pytest.mark.parametrize("family", READING[:3])
def test_generate_takes_their_prompts_one_by_one(family):
    model, tokenizer = build(family), words()
    op = sf.add(vector_at(model, sf.resid_post[1], scale=3.0))
    prompts = ["a b c d e f", "c", "d e f"]
    together = sf.generate(model, tokenizer, prompts, op, max_new_tokens=4).token_ids
    assert together == tuple(sf.generate(model, tokenizer, p, op, max_new_tokens=4).token_ids[0] for p in prompts)


def test_a_padded_batch_of_such_a_model_warns():
    model: Any = build("rwkv")
    ids, mask = padded()
    options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    with sf.steer(model, vector_at(model, sf.resid_post[1])):
        for given in (mask, None):
            with pytest.warns(sf.SteerWarning, match="lets RwkvForCausalLM read the padding"):
                model.generate(ids, attention_mask=given, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error", sf.SteerWarning)
            model.generate(ids[:, 4:], attention_mask=mask[:, 4:].fill_(1), **options)


def test_other_models_are_not_in_the_table(tiny):
    assert not reads_pads(tiny)
    assert not reads_pads(object())
    assert "llama" not in READ_PADS
