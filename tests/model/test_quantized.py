"""Weights of few bits: bf16, and int8 and int4 through torchao, on the CPU.

The oracle is a hand-written forward hook on the same model, bit for bit. int4 is `IntxWeightOnlyConfig`, as
`sf.from_pretrained(quantization="int4")` makes it: none of the packings of torchao's `Int4WeightOnlyConfig` runs on
a CPU (0.18: two want the package mslk, one CUDA, one says "does not support device 'cpu' yet").
"""

import dataclasses
import functools

import pytest
import torch
from snapshot import Snapshot, assert_same_bits, same_bits
from steering import sites_of, token_ids, vector_at
from transformers import LlamaConfig, LlamaForCausalLM
from words import words

import steerfn as sf

pytestmark = pytest.mark.filterwarnings("ignore:.*_check_is_size:FutureWarning")

KINDS = [("bf16", None), ("bf16", "int8"), ("fp32", "int8"), ("bf16", "int4"), ("fp32", "int4")]
LAYER = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved random Llama whose widths are multiples of 32, as int4 needs."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 99}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **tokens))
        for value in model.parameters():
            value.data = value.data + 0.1 * torch.randn(value.shape)
    made = tmp_path_factory.mktemp("model")
    model.save_pretrained(made)
    words().save_pretrained(made)
    return made


@functools.cache
def loaded(folder, dtype, quantization):
    return sf.from_pretrained(folder, device="cpu", dtype=dtype, quantization=quantization)[0]


@pytest.fixture(params=KINDS, ids=["-".join(filter(None, kind)) for kind in KINDS])
def model(request, folder):
    if request.param[1] is not None:
        pytest.importorskip("torchao", reason="int8 and int4 weights need torchao")
    found = loaded(folder, *request.param)
    weight = found.model.layers[LAYER].mlp.down_proj.weight
    assert (type(weight) is torch.nn.Parameter) == (request.param[1] is None)
    found(token_ids(1, 2), output_hidden_states=True)  # transformers puts its hooks in place, to stay, at first use
    before, plain = facts(found), logits(found)
    yield found
    assert not before.differences(facts(found))
    assert_same_bits(logits(found), plain, "removal")


def facts(model):
    return dataclasses.replace(Snapshot.of(model), tensors={})


def logits(model):
    with torch.no_grad():
        return model(token_ids()).logits


def hooked(model, site, delta):
    """The logits with a change added at a site by a plain hook."""
    block = model.model.layers[site.layer]

    def after(module, args, out):
        return (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta

    def before(module, args, kwargs):
        return (args[0] + delta, *args[1:]), kwargs

    def head(module, args):
        wide = torch.zeros(args[0].shape[-1], dtype=args[0].dtype)
        wide[site.head * len(delta) : (site.head + 1) * len(delta)] = delta
        return (args[0] + wide,)

    handle = {
        "resid_pre": lambda: block.register_forward_pre_hook(before, with_kwargs=True),
        "resid_post": lambda: block.register_forward_hook(after),
        "attn_out": lambda: block.self_attn.register_forward_hook(after),
        "mlp_out": lambda: block.mlp.register_forward_hook(after),
        "head_out": lambda: block.self_attn.o_proj.register_forward_pre_hook(head),
    }[site.kind]()
    try:
        return logits(model)
    finally:
        handle.remove()


def test_pitfall_14_every_site_is_steered_as_by_a_hook(model):
    plain, pure = logits(model), sf.functional(model)
    assert plain.dtype == model.dtype
    for site in sites_of(model):
        if site.block != LAYER or site.kind == "resid_mid":  # the stream after attention is no module's output
            continue
        v = vector_at(model, site, seed=2)
        expected = hooked(model, site, (2 * v[site]).to(model.dtype))
        assert not same_bits(expected, plain)
        with sf.steer(model, v, 2.0):
            assert_same_bits(logits(model), expected, str(site))
        with torch.no_grad():
            assert_same_bits(pure(sf.add(v, 2.0), token_ids()).logits, expected, str(site))


def test_resid_mid_is_read_as_it_was_steered(model):
    """The round-trip law: what is added there is what is read there (to one rounding of the state)."""
    site = sf.resid_mid[LAYER]
    v = vector_at(model, site, seed=3)
    with torch.no_grad():
        before = sf.capture(model, site)(token_ids())[1][site]
        with sf.steer(model, v, 2.0):
            after = sf.capture(model, site)(token_ids())[1][site]
    rounding = 2 * torch.finfo(model.dtype).eps * after.double().abs().clamp_min(1)
    assert ((after.double() - before.double() - 2 * v[site].double()).abs() <= 2 * rounding).all()


def test_generation(model):
    ids, site = token_ids(), sf.resid_post[LAYER]
    op = sf.at(sf.generated, sf.add(vector_at(model, site, scale=4.0)))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    plain = model.generate(ids, **options)
    with sf.steer(model, op):
        steered = model.generate(ids, **options)
        uncached = model.generate(ids, use_cache=False, **options)
    assert not torch.equal(steered, plain)
    assert torch.equal(model.generate(ids, **options), plain)
    if model.dtype == torch.float32:  # in bf16 the two ways of computing attention may round to another token
        assert torch.equal(uncached, steered)
    tokenizer = words()
    alone = [sf.generate(model, tokenizer, ["a b c", "d e f"], each, max_new_tokens=6).token_ids for each in (None, op)]
    mixed = sf.generate(model, tokenizer, ["a b c", "d e f"], [None, op], max_new_tokens=6).token_ids
    assert mixed == (alone[0][0], alone[1][1])


def test_discovery(model):
    """Against the hidden states that transformers gives, text by text."""
    positive, negative, tokenizer = ["a b c", "d e", "a b f g"], ["h i", "a b j k l"], words()

    def mean(texts):
        rows = []
        for text in texts:
            with torch.no_grad():
                states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            rows.append(states[LAYER + 1][0, -1].double())
        return torch.stack(rows).mean(0)

    v = sf.mean_difference(model, tokenizer, positive=positive, negative=negative, sites=LAYER, progress=False)
    expected = mean(positive) - mean(negative)
    found = v[sf.resid_post[LAYER]].double()
    assert (found - expected).norm() <= (1e-4 if model.dtype == torch.float32 else 3e-2) * expected.norm()
    plain = logits(model)
    with sf.steer(model, v, strict=True):
        assert not same_bits(logits(model), plain)


def test_strengths_side_by_side_without_gradients(model):
    """A sweep that asks for no derivative: strengths are rows, in inference mode and without a graph."""
    v, pure = vector_at(model, sf.resid_post[LAYER]), sf.functional(model)
    ids = token_ids(1).expand(3, -1)
    alphas = torch.tensor([-2.0, 0.0, 2.0])
    with torch.inference_mode():
        plain = model(ids).logits
        together = pure(sf.add(v, alphas), ids).logits
        alone = [pure(sf.add(v, float(alpha)), ids).logits[i] for i, alpha in enumerate(alphas)]
    assert not together.requires_grad
    for row, expected in zip(together, alone, strict=True):
        assert_same_bits(row, expected)
    assert_same_bits(together[1], plain[1])
    assert not same_bits(together[0], plain[0])
    with torch.no_grad(), sf.steer(model, sf.add(v, alphas)):
        assert_same_bits(model(ids).logits, together.clone())


def test_gradients_reach_the_vector(model):
    """The weights are constants; the derivative with respect to a direction is that of finite differences."""
    if model.dtype != torch.float32:
        pytest.skip("finite differences in bf16 are rounding noise")
    site = sf.resid_post[LAYER]
    v, w = vector_at(model, site), vector_at(model, site, seed=8)
    pure = sf.functional(model)

    def loss(u):
        return pure(sf.add(u), token_ids()).logits.double().square().mean()

    slope = sum((torch.func.grad(loss)(v)[site] * w[site]).tolist())
    step = 1e-2
    with torch.no_grad():
        expected = float(loss(v + step * w) - loss(v - step * w)) / (2 * step)
    assert abs(slope - expected) <= 1e-2 * abs(expected)
