"""Models that do not lie in one piece on one device: accelerate's offloading, and int8 weights."""

import pytest
import torch
from families import build
from snapshot import assert_same_bits
from steering import everywhere_in, sites_of, token_ids

import steerfn as sf

accelerate = pytest.importorskip("accelerate")


def to_cpu(model, folder):
    return accelerate.cpu_offload(model, torch.device("cpu"))


def to_disk(model, folder):
    return accelerate.disk_offload(model, str(folder), torch.device("cpu"))


def dispatched(model, folder):
    names = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    rest = {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return accelerate.dispatch_model(model, names | rest, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("offload", [to_cpu, to_disk, dispatched])
@pytest.mark.filterwarnings("ignore::FutureWarning:accelerate")
def test_offloaded_models_are_steered_like_whole_ones(offload, tmp_path):
    whole, ids = build("llama"), token_ids()
    v = everywhere_in(whole)
    op = sf.chain(sf.add(v, 0.5), sf.at(sf.last_prompt_token, sf.ablate(v)))
    with torch.no_grad():
        plain = whole(ids).logits
        with sf.steer(whole, op):
            want = whole(ids).logits
            tokens = whole.generate(ids, max_new_tokens=5, do_sample=False)
        _, acts = sf.capture(whole, sites_of(whole))(ids)

        model = offload(build("llama"), tmp_path)
        assert_same_bits(model(ids).logits, plain)
        with sf.steer(model, op):
            assert_same_bits(model(ids).logits, want)
            assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), tokens)
        assert_same_bits(model(ids).logits, plain)
        assert_same_bits(sf.functional(model)(op, ids).logits, want)
        for site, state in sf.capture(model, sites_of(model))(ids)[1].items():
            assert_same_bits(state, acts[site])
        assert_same_bits(model(ids).logits, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pitfall_14_int8_weights(dtype, tmp_path):
    pytest.importorskip("torchao")
    build("llama").save_pretrained(tmp_path)
    from words import words

    words().save_pretrained(tmp_path)
    model, _ = sf.from_pretrained(tmp_path, dtype=dtype, quantization="int8", device="cpu")
    ids = token_ids()
    v = everywhere_in(model)
    with torch.no_grad():
        plain = model(ids).logits
        with sf.steer(model, v):
            inside = model(ids).logits
        assert_same_bits(model(ids).logits, plain)
        assert_same_bits(sf.functional(model)(sf.add(v), ids).logits, inside)
        out, acts = sf.capture(model, 1)(ids)
        with sf.steer(model, v.select(1)):
            moved = sf.capture(model, 1)(ids)[1]
    assert not torch.equal(inside, plain) and inside.dtype == dtype
    assert_same_bits(moved[sf.resid_post[1]], acts[sf.resid_post[1]] + v[1].to(dtype))
