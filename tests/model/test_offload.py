"""Models that are not simply in memory: offloaded to the CPU or to disk by accelerate, and int8 weights.

The oracle is the same model without offloading, bit for bit; for int8, a forward hook on the same model.
"""

import pytest
import torch
from families import build
from snapshot import HOOKS, assert_same_bits, same_bits
from steering import everywhere_in, sites_of, token_ids, vector_at

import steerfn as sf

accelerate = pytest.importorskip("accelerate")

FAMILIES = ["llama", "gpt2", "gemma2", "phi"]
# A weight on disk is a read-only memory map.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),
    pytest.mark.filterwarnings("ignore:.*_check_is_size:FutureWarning"),
]


def by_cpu(model, folder):
    """Every weight waits on the CPU and is put in place for its module's forward."""
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def by_disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def by_map(model, folder):
    """Some blocks stay, some are offloaded: what `device_map` does."""
    stack = sf.layout(build_like(model)).blocks[0].path.rpartition(".")[0]
    others = [n for n, m in model.named_modules() if not stack.startswith(n) and not n.startswith(stack)]
    tops = [n for n in others if not any(n.startswith(o + ".") for o in others)]
    places = {**dict.fromkeys(tops, "cpu"), f"{stack}.0": "cpu", f"{stack}.1": "disk", f"{stack}.2": "cpu"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def build_like(model):
    """A model of the same family, to ask without touching the one under test."""
    return build(model.config.model_type)


WAYS = [by_cpu, by_disk, by_map]
ways = pytest.mark.parametrize("way", WAYS)
families = pytest.mark.parametrize("family", FAMILIES)


def logits(model, **options):
    with torch.no_grad():
        return model(token_ids(), **options).logits


def state(model):
    """What a context could leave behind, read without asking for weights that lie elsewhere."""
    facts = {}
    for name, module in model.named_modules():
        facts[name] = (
            id(module),
            sorted(module.__dict__),
            id(module.__dict__.get("forward")),
            id(module.__dict__.get("_hf_hook")),
            [(n, id(c)) for n, c in module._modules.items()],
            [(n, p.device.type, p.dtype, tuple(p.shape)) for n, p in module.named_parameters(recurse=False)],
            module.training,
            [list(getattr(module, hooks)) for hooks in HOOKS],
        )
    return facts


@ways
@families
def test_offloaded_models_are_steered_at_every_site(family, way, tmp_path):
    whole = build(family)
    model = way(build(family), tmp_path)
    plain, v = logits(model), everywhere_in(whole)
    assert_same_bits(plain, logits(whole))
    with sf.steer(whole, v, 2.0):
        expected = logits(whole)
        acts = sf.capture(whole, sites_of(whole))(token_ids())[1]
    assert not same_bits(expected, plain)

    before = state(model)
    assert str(sf.layout(model)).split(" checked ")[0] == str(sf.layout(whole)).split(" checked ")[0]
    assert state(model) == before
    with sf.steer(model, v, 2.0):
        assert_same_bits(logits(model), expected, "context")
        found = sf.capture(model, sites_of(whole))(token_ids())[1]
        assert_same_bits(logits(model), expected, "context again")
    assert state(model) == before
    assert found.keys() == acts.keys()
    for site in acts:
        assert_same_bits(found[site], acts[site], str(site))
    with torch.no_grad():
        assert_same_bits(sf.functional(model)(sf.add(v, 2.0), token_ids()).logits, expected, "pure view")
    assert state(model) == before
    assert_same_bits(logits(model), plain)


@ways
def test_each_site_alone_on_an_offloaded_model(way, tmp_path):
    """One site at a time, so that each kind of clone is the only one in place."""
    whole, model = build("llama"), way(build("llama"), tmp_path)
    f = sf.functional(model)
    for i, site in enumerate(sites_of(whole)):
        op = sf.chain(sf.ablate(vector_at(whole, site, seed=i)), sf.add(vector_at(whole, site, seed=i + 1)))
        with torch.no_grad():
            expected = sf.functional(whole)(op, token_ids()).logits
            with sf.steer(model, op):
                assert_same_bits(logits(model), expected, str(site))
            assert_same_bits(f(op, token_ids()).logits, expected, str(site))
            out, acts = sf.capture(model, site)(token_ids())
        assert_same_bits(out.logits, logits(whole))
        assert_same_bits(acts[site], sf.capture(whole, site)(token_ids())[1][site].detach(), str(site))


# transformers 4.57 warns, with or without steering, where the first parameter of a model lies elsewhere.
@pytest.mark.filterwarnings("ignore:You are calling .generate")
@ways
def test_generation_on_an_offloaded_model(way, tmp_path):
    whole, model = build("llama"), way(build("llama"), tmp_path)
    op = sf.at(sf.generated, sf.add(vector_at(whole, sf.resid_post[1], scale=3.0)))
    options = {"max_new_tokens": 5, "do_sample": False}
    plain = whole.generate(token_ids(), **options)
    with sf.steer(whole, op):
        expected = whole.generate(token_ids(), **options)
    assert not torch.equal(plain, expected)
    with sf.steer(model, op):
        assert torch.equal(model.generate(token_ids(), **options), expected)
    assert torch.equal(model.generate(token_ids(), **options), plain)


@ways
def test_an_error_inside_leaves_an_offloaded_model_whole(way, tmp_path):
    model = way(build("llama"), tmp_path)
    plain, before = logits(model), state(model)
    v = everywhere_in(build("llama"))
    with pytest.raises(ZeroDivisionError), sf.steer(model, v):
        logits(model)
        raise ZeroDivisionError
    assert state(model) == before
    assert_same_bits(logits(model), plain)
    wrong = sf.SteeringVector({sf.resid_post[1]: torch.ones(31)})
    with pytest.raises(sf.ShapeError, match="width 31"), sf.steer(model, wrong):
        pass  # pragma: no cover
    assert state(model) == before


def test_nested_contexts_on_an_offloaded_model(tmp_path):
    whole, model = build("llama"), by_map(build("llama"), tmp_path)
    v, w = vector_at(whole, sf.resid_post[1]), vector_at(whole, sf.attn_out[1], seed=1)
    with torch.no_grad():
        both = sf.functional(whole)(sf.chain(sf.add(v), sf.add(w)), token_ids()).logits
        only = sf.functional(whole)(sf.add(w), token_ids()).logits
    plain, first, second = logits(model), sf.steer(model, v), sf.steer(model, w)
    first.__enter__()
    second.__enter__()
    assert_same_bits(logits(model), both)
    first.close()
    assert_same_bits(logits(model), only)
    second.close()
    assert_same_bits(logits(model), plain)


def test_a_device_map_given_at_load(tmp_path):
    """As users do it: `from_pretrained(device_map=..., offload_folder=...)`."""
    whole = build("llama")
    whole.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = (
        type(whole)
        .from_pretrained(tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "weights"))
        .eval()
    )
    assert next(model.model.layers[1].parameters()).device.type == "meta"
    v = everywhere_in(whole)
    plain, before = logits(model), state(model)
    assert_same_bits(plain, logits(whole))
    with sf.steer(whole, v):
        expected = logits(whole)
    with sf.steer(model, v):
        assert_same_bits(logits(model), expected)
    with torch.no_grad():
        assert_same_bits(sf.functional(model)(sf.add(v), token_ids()).logits, expected)
    assert state(model) == before
    assert_same_bits(logits(model), plain)


def quantized(dtype):
    """A tiny model whose linear layers hold int8 weights, as `from_pretrained(quantization="int8")` makes them."""
    torchao = pytest.importorskip("torchao.quantization")
    model = build("llama").to(dtype)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pitfall_14_int8_weights(dtype):
    model = quantized(dtype)
    assert type(model.model.layers[1].mlp.down_proj.weight) is not torch.nn.Parameter
    plain, before = logits(model), state(model)
    full = logits(build("llama").to(dtype))
    assert plain.dtype == dtype and not same_bits(plain, full)
    site = sf.resid_post[1]
    v = vector_at(model, site)

    def add(module, args, out):
        delta = (2 * v[site]).to(dtype)
        return (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta

    handle = model.model.layers[1].register_forward_hook(add)
    by_hook = logits(model)
    handle.remove()
    with sf.steer(model, v, 2.0):
        assert_same_bits(logits(model), by_hook)
    assert_same_bits(logits(model), plain)
    with torch.no_grad():
        assert_same_bits(sf.functional(model)(sf.add(v, 2.0), token_ids()).logits, by_hook)

    everything = everywhere_in(model)
    with torch.no_grad(), sf.steer(model, everything):
        context = logits(model)
        acts = sf.capture(model, sites_of(model))(token_ids())[1]
    with torch.no_grad():
        assert_same_bits(sf.functional(model)(sf.add(everything), token_ids()).logits, context)
    assert set(acts) == set(sites_of(model)) and {a.dtype for a in acts.values()} == {dtype}
    assert state(model) == before
    assert_same_bits(logits(model), plain)
    options = {"max_new_tokens": 4, "do_sample": False}
    tokens = model.generate(token_ids(), **options)
    with sf.steer(model, v, 5.0, scope=sf.generated):
        assert not torch.equal(model.generate(token_ids(), **options), tokens)
    assert torch.equal(model.generate(token_ids(), **options), tokens)
