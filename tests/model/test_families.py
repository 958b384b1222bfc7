"""The laws of sites on every architecture family: what is captured, what is steered, what the model computes.

The oracle is plain transformers with hooks written by hand. The families outside `CORE` run in the slow tests.
"""

import contextlib

import pytest
import torch
from families import CORE, FAMILIES, UNSUPPORTED, build, shared
from snapshot import assert_same_bits, same_bits
from steering import sites_of, token_ids, vector_at

import steerfn as sf

# What transformers 4.57 does while it imports some families.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

OTHERS = [name for name in FAMILIES if name not in CORE and name not in UNSUPPORTED]
families = pytest.mark.parametrize("family", [*CORE, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])

ALPHA = 1.7


@contextlib.contextmanager
def recorded(model, paths, *, inputs=False):
    """What a plain forward hook sees at modules: `{path: [tensor, ...]}`, one for each call."""
    seen = {path: [] for path in paths}

    def note_input(path):
        def hook(module, args, kwargs):
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.is_floating_point()]
            seen[path] += [x.clone() for x in given[:1]]

        return hook

    def note_output(path):
        def hook(module, args, out):
            seen[path].append((out[0] if isinstance(out, (tuple, list)) else out).clone())

        return hook

    handles = []
    for path in paths:
        module = model.get_submodule(path)
        if inputs:
            handles.append(module.register_forward_pre_hook(note_input(path), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(note_output(path)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def adding(delta):
    """A forward hook that adds to the output of a block, bare tensor or tuple."""

    def hook(module, args, out):
        return (out[0] + delta, *out[1:]) if isinstance(out, (tuple, list)) else out + delta

    return hook


def captured(model, sites, **options):
    with torch.no_grad():
        return sf.capture(model, sites)(token_ids(), **options)[1]


def blocks_of(model):
    return sf.layout(model).blocks


def once(seen):
    """The recordings of modules that ran once."""
    return {path: values[0] for path, values in seen.items() if len(values) == 1}


@families
def test_pitfall_13_round_trip_at_every_site(family):
    model = shared(family)
    sites = sites_of(model)
    before = captured(model, sites)
    for i, site in enumerate(sites):
        v = vector_at(model, site, seed=i)
        if site not in before:
            continue  # a block that runs with images only
        with sf.steer(model, v, alpha=ALPHA):
            after = captured(model, sites)
        delta = torch.tensor(ALPHA) * v[site]
        found = after[site] - before[site]
        # atol: a float at the size of the stream, which some families let grow.
        size = float(before[site].abs().max()) + float(delta.abs().max())
        torch.testing.assert_close(found, delta.expand_as(found), rtol=1e-4, atol=3e-6 * size)
        if site.kind in ("resid_pre", "resid_post", "head_out"):
            assert_same_bits(after[site], before[site] + delta, str(site))
        for other in sites:
            if other.order < site.order and other in before:
                assert_same_bits(after[other], before[other], f"{other}, before {site}")


@families
def test_pitfall_18_exact_delta_at_a_block(family):
    model = shared(family)
    layer = 0 if family == "mllama" else 1  # its block 1 runs with images only
    v, site = vector_at(model, sf.resid_post[layer]), sf.resid_post[layer]
    path = blocks_of(model)[layer].path
    with torch.no_grad(), recorded(model, [path]) as seen:
        model(token_ids())
        with sf.steer(model, v, alpha=ALPHA):
            model(token_ids())
        sf.functional(model)(sf.add(v, ALPHA), token_ids())
    before, *steered = seen[path]
    assert len(steered) == 2
    for after in steered:
        assert_same_bits(after, before + torch.tensor(ALPHA) * v[site])


@families
def test_pitfall_12_captured_is_what_the_model_computes(family):
    model = shared(family)
    blocks = blocks_of(model)
    paths = [b.path for b in blocks]
    with torch.no_grad(), recorded(model, paths) as outputs, recorded(model, paths, inputs=True) as inputs:
        model(token_ids())
    acts = captured(model, sites_of(model, "resid_pre", "resid_post"))
    for layer, path in enumerate(paths):
        if sf.resid_pre[layer] not in acts:
            assert outputs[path] == []
            continue
        assert_same_bits(acts[sf.resid_pre[layer]], inputs[path][0], f"resid_pre[{layer}]")
        assert_same_bits(acts[sf.resid_post[layer]], outputs[path][0], f"resid_post[{layer}]")


@families
def test_pitfall_12_the_next_operation_sees_what_is_captured(family):
    """Steered: the input of the next block, and for the last block of whatever comes after all of them."""
    model = shared(family)
    blocks = blocks_of(model)
    sites = sites_of(model, "resid_post")
    stack, inside = sf.layout(model).stack, blocks[0].path.rpartition(".")[0]
    outside = [
        name
        for name, _ in model.named_modules()
        if name and not (name == stack or stack.startswith(f"{name}.") or f"{name}.".startswith(f"{inside}."))
    ]
    with sf.steer(model, vector_at(model, sites), alpha=ALPHA):
        with recorded(model, [b.path for b in blocks], inputs=True) as within:
            with recorded(model, outside, inputs=True) as around:
                acts = captured(model, sites)
        for layer, block in enumerate(blocks[1:], start=1):
            before = acts.get(sf.resid_post[layer - 1])
            if before is not None and within[block.path] and family not in BETWEEN:
                assert_same_bits(within[block.path][0], before, f"input of block {layer}")
    last = acts[sf.resid_post[len(blocks) - 1]]
    met = [name for name, values in around.items() for x in values if x.shape == last.shape and torch.equal(x, last)]
    assert met or family in BETWEEN, "no module after the last block received its captured output"


BETWEEN = {
    "zamba": "hybrid blocks read the stream of a shared transformer",
    "inkling2_text": "the norm at the end reads a mix of all blocks",
    "zamba2": "hybrid blocks read the stream of a shared transformer",
}
"""Families which do something to the stream between two blocks, or after the last: what, by family."""

LATE = {"mamba", "mamba2", "falcon_mamba", "rwkv"}
"""Families whose `hidden_states` leave out the embedding and end with the last block before and after the norm."""

UNEQUAL = {
    "rwkv": "the first block normalises the embedding before it adds to it",
    "gemma4_text": "every block scales its output",
    "gemma4_unified_text": "every block scales its output",
}
"""Families whose blocks do more than add to the stream: what they do, by family."""


@families
def test_addends_sum_to_the_stream(family):
    model = shared(family)
    acts = captured(model, sites_of(model))
    for layer, block in enumerate(blocks_of(model)):
        if sf.resid_pre[layer] not in acts:
            continue
        pre, post = acts[sf.resid_pre[layer]], acts[sf.resid_post[layer]]
        size = float(max(pre.abs().max(), post.abs().max()))
        near = {"rtol": 1e-4, "atol": 3e-6 * size}
        if "resid_mid" in block.kinds:
            mid = acts[sf.resid_mid[layer]]
            torch.testing.assert_close(mid, pre + acts[sf.attn_out[layer]], **near)
            if "mlp_out" in block.kinds and family not in UNEQUAL:
                torch.testing.assert_close(post, mid + acts[sf.mlp_out[layer]], **near)
        elif {"attn_out", "mlp_out"} <= {*block.kinds} and family not in UNEQUAL:
            torch.testing.assert_close(post, pre + acts[sf.attn_out[layer]] + acts[sf.mlp_out[layer]], **near)
        elif "one sublayer" in dict(block.missing).get("resid_mid", "") and family not in UNEQUAL:
            (one,) = [kind for kind in ("attn_out", "mlp_out") if kind in block.kinds]
            torch.testing.assert_close(post, pre + acts[sf.Site(one, layer)], **near)


@families
def test_sublayer_sites_are_where_the_layout_says(family):
    model = shared(family)
    blocks = blocks_of(model)
    outputs = {f"{b.path}.{a.path}" for b in blocks for a in (b.attn, b.mlp) if a is not None}
    inputs = {f"{b.path}.{p}" for b in blocks for p in (b.mid, b.projection) if p is not None}
    with torch.no_grad(), recorded(model, outputs) as made, recorded(model, inputs, inputs=True) as given:
        model(token_ids())
    made, given = once(made), once(given)
    sites = [
        s for i, b in enumerate(blocks) if "head_out" in b.kinds for s in (sf.head_out[i, h] for h in range(b.heads))
    ]
    acts = captured(model, [*sites_of(model, "resid_pre", "attn_out", "mlp_out", "resid_mid", "resid_post"), *sites])
    for layer, block in enumerate(blocks):
        if sf.resid_pre[layer] not in acts:
            continue
        shape = acts[sf.resid_pre[layer]].shape
        for kind, addend in (("attn_out", block.attn), ("mlp_out", block.mlp)):
            if addend is not None and f"{block.path}.{addend.path}" in made:
                found = made[f"{block.path}.{addend.path}"].reshape(shape) * addend.scale
                torch.testing.assert_close(acts[sf.Site(kind, layer)], found, rtol=1e-6, atol=1e-6)
        if "resid_mid" in block.kinds and f"{block.path}.{block.mid}" in given:
            found = given[f"{block.path}.{block.mid}"].reshape(shape)
            torch.testing.assert_close(acts[sf.resid_mid[layer]], found, rtol=1e-5, atol=1e-5)
        if "head_out" in block.kinds:
            heads = torch.cat([acts[sf.head_out[layer, h]] for h in range(block.heads)], -1)
            assert_same_bits(heads, given[f"{block.path}.{block.projection}"].reshape(heads.shape), "head_out")


@families
@pytest.mark.parametrize("layer", [0, -1])
def test_pitfall_01_context_is_pure_view_is_forward_hook(family, layer):
    model = shared(family)
    v = vector_at(model, sf.resid_post[layer].resolve(len(blocks_of(model))))
    (site,) = v.sites
    with torch.no_grad():
        plain = model(token_ids()).logits
        with sf.steer(model, v, alpha=ALPHA):
            context = model(token_ids()).logits
        pure = sf.functional(model)(sf.add(v, ALPHA), token_ids()).logits
        params = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        swapped = sf.functional(model)(sf.add(v, ALPHA), token_ids(), params=params).logits
        block = model.get_submodule(blocks_of(model)[site.layer].path)
        handle = block.register_forward_hook(adding(torch.tensor(ALPHA) * v[site]))
        by_hook = model(token_ids()).logits
        handle.remove()
    for found in (context, pure, swapped):
        assert_same_bits(found, by_hook)
    for row in range(len(plain)):
        assert not torch.allclose(plain[row], by_hook[row]), f"row {row} was not steered"


@families
def test_context_is_pure_view_at_every_site(family):
    model = shared(family)
    f = sf.functional(model)
    with torch.no_grad():
        for i, site in enumerate(sites_of(model)):
            op = sf.chain(sf.add(vector_at(model, site, seed=i)), sf.ablate(vector_at(model, site, seed=i + 1)))
            with sf.steer(model, op):
                context = model(token_ids()).logits
            assert_same_bits(f(op, token_ids()).logits, context, str(site))


def patch_forward(block, delta):
    """The block with a forward that adds to its output, whichever way transformers records it."""
    inner, add = block.forward, adding(delta)
    block.forward = lambda *args, **kwargs: add(block, args, inner(*args, **kwargs))


def hidden_states(model, op=None, how="plain"):
    """The hidden states of the three ways to run a model, one tensor for each layer."""
    options = {"output_hidden_states": True, "return_dict": True}
    with torch.no_grad():
        if how == "context":
            with sf.steer(model, op):
                return model(token_ids(), **options).hidden_states
        if how == "functional":
            return sf.functional(model)(op, token_ids(), **options).hidden_states
        if how == "params":
            return sf.functional(model)(op, token_ids(), params=dict(model.named_parameters()), **options).hidden_states
        return model(token_ids(), **options).hidden_states


@families
@pytest.mark.parametrize("first", ["plain", "context", "functional", "params"])
def test_output_hidden_states_show_the_steered_values_once(family, first):
    """Whichever way asks first, since transformers 5 then installs hooks of its own, and does so once."""
    reference, model = build(family), build(family)
    layers = len(blocks_of(model))
    v = vector_at(model, sites_of(model, "resid_post"))
    plain = hidden_states(reference)
    for layer, block in enumerate(blocks_of(reference)):
        patch_forward(reference.get_submodule(block.path), torch.tensor(ALPHA) * v[sf.resid_post[layer]])
    steered = hidden_states(reference)
    ways = ["plain", "context", "functional", "params"]
    start = ways.index(first)
    for how in [*ways[start:], *ways[:start], *ways]:
        expected = plain if how == "plain" else steered
        found = hidden_states(model, sf.add(v, ALPHA), how)
        assert len(found) == len(expected), f"{how} after {first}"
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same_bits(a, b, f"hidden_states[{i}], {how} after {first}")
    if len(plain) == layers + 1 and family not in BETWEEN and family != "xlnet":  # it keeps the sequence first
        with sf.steer(model, v, alpha=ALPHA):
            acts = captured(model, sites_of(model, "resid_post"))
        for site in sites_of(model, "resid_post")[:-1]:
            if site in acts:
                assert_same_bits(acts[site], steered[site.layer + (family not in LATE)], f"{site} in hidden_states")


@families
def test_pitfall_17_two_vectors_on_one_site_add_up(family):
    model = shared(family)
    site = sf.resid_post[0 if family == "mllama" else 1]
    v, w = vector_at(model, site, seed=1), vector_at(model, site, seed=2)
    before = captured(model, site)[site]
    with sf.steer(model, v, alpha=0.5), sf.steer(model, w, alpha=-2.0):
        nested = captured(model, site)[site]
    with sf.steer(model, sf.chain(sf.add(v, 0.5), sf.add(w, -2.0))):
        chained = captured(model, site)[site]
    with sf.steer(model, 0.5 * v - 2 * w):
        summed = captured(model, site)[site]
    assert_same_bits(nested, before + 0.5 * v[site] - 2 * w[site])
    assert_same_bits(chained, nested)
    torch.testing.assert_close(summed, nested)


@families
def test_pitfall_16_captured_tensors_stay_as_they_were(family):
    model = shared(family)
    sites = sites_of(model)
    ids = token_ids()
    acts = captured(model, sites)
    copies = {site: value.clone() for site, value in acts.items()}
    for kind in ("resid_pre", "head_out", "attn_out", "resid_mid", "mlp_out", "resid_post"):
        vectors = [vector_at(model, site) for site in sites_of(model, kind)]
        with sf.steer(model, sf.chain(*(op(v) for v in vectors for op in (sf.ablate, sf.add, sf.project)))):
            captured(model, sites)
    for site, value in acts.items():
        assert_same_bits(value, copies[site], str(site))
    assert torch.equal(ids, token_ids())


@families
def test_every_row_is_steered_as_if_alone(family):
    """Pitfall 2: rows of a batch, one of them alone, and one token alone (28)."""
    model = shared(family)
    op = sf.add(vector_at(model, sites_of(model, "resid_post")), ALPHA)
    ids = token_ids(3)
    with torch.no_grad(), sf.steer(model, op):
        together = model(ids).logits
        for row in range(3):
            alone = model(ids[row : row + 1]).logits
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-4)
        one = model(ids[:1, :1]).logits
    if family != "recurrent_gemma":  # it keeps its state on its modules, and one token reads what was there before
        assert_same_bits(one, sf.functional(model)(op, ids[:1, :1]).logits.detach())
    assert one.shape[:2] == (1, 1)


OPERATORS = {
    "add": lambda v, w: sf.add(v, ALPHA),
    "add by row": lambda v, w: sf.add(v, torch.tensor([1.0, -2.0])),
    "ablate": lambda v, w: sf.ablate(v),
    "project": lambda v, w: sf.project(v),
    "clamp": lambda v, w: sf.clamp(v, 3.0),
    "rotate": lambda v, w: sf.rotate(v, 0.7),
    "rotate in a plane": lambda v, w: sf.rotate(v, 0.7, plane=w),
    "renorm": lambda v, w: sf.renorm(sf.add(v)),
    "chain": lambda v, w: sf.chain(sf.add(v), sf.ablate(w)),
    "when": lambda v, w: sf.when(sf.projection_above(w, 0.0), sf.add(v)),
    "rows": lambda v, w: sf.rows([sf.rotate(v, 0.3), None]),
    "scheduled": lambda v, w: sf.scheduled(sf.add(v), [0.5]),
    "at": lambda v, w: sf.at(sf.positions(1, -1), sf.add(v)),
}

HALF = [torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=["fp32", "bf16", "fp16"])


@families
@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
def test_pitfall_14_half_precision_is_kept(family, dtype):
    """A float32 vector in a half-precision stream: every site keeps its dtype, and the delta is the cast one."""
    try:
        model = build(family).to(dtype)
        with torch.no_grad():
            model(token_ids())
    except (RuntimeError, UserWarning) as error:
        if family in CORE:
            raise
        pytest.skip(f"the model itself does not run in {dtype}: {error}")
    sites = sites_of(model)
    site = sf.resid_post[0 if family == "mllama" else 1]
    v = vector_at(model, site)
    block = model.get_submodule(blocks_of(model)[site.layer].path)
    with torch.no_grad():
        plain = model(token_ids()).logits
        before = captured(model, sites)
        with sf.steer(model, v, alpha=ALPHA):
            context, after = model(token_ids()).logits, captured(model, sites)
        pure = sf.functional(model)(sf.add(v, ALPHA), token_ids()).logits
        handle = block.register_forward_hook(adding((torch.tensor(ALPHA) * v[site]).to(before[site].dtype)))
        by_hook = model(token_ids()).logits
        handle.remove()
    assert_same_bits(context, by_hook)
    assert_same_bits(pure, by_hook)
    assert context.dtype == plain.dtype
    assert not same_bits(context, plain)
    for at, value in before.items():
        assert after[at].dtype == value.dtype, at
    assert before[site].dtype in (dtype, torch.float32)  # some families keep their stream in float32
    with torch.no_grad():
        everywhere = vector_at(model, [at for at in sites if at.kind != "head_out"], scale=0.1)
        with sf.steer(model, everywhere):
            assert model(token_ids()).logits.dtype == plain.dtype


@dtypes
@pytest.mark.parametrize("given", [torch.float64, torch.float32, *HALF], ids=["f64", "f32", "bf16", "f16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_pitfall_14_every_operator_computes_in_float32_and_casts(name, given, dtype):
    model = build("llama").to(dtype)
    site = sf.resid_post[1]
    v, w = vector_at(model, site, seed=1).to(given), vector_at(model, site, seed=2).to(given)
    op = OPERATORS[name](v, w)
    with torch.no_grad():
        before = captured(model, site)[site]
        with sf.steer(model, op):
            after = captured(model, site)[site]
            assert model(token_ids()).logits.dtype == dtype
    assert after.dtype == dtype
    # The same operator in double precision on what was there: within the rounding of the stream, once for each
    # operator of a chain.
    exact = OPERATORS[name](v.to(torch.float64), w.to(torch.float64))
    exact = exact(before.double(), sf.Info.of(before, site))
    steps = 2 if name == "chain" else 1
    spacing = torch.finfo(dtype).eps * exact.abs().clamp_min(before.abs().max().double())
    assert ((after.double() - exact).abs() <= (steps + 1) * spacing).all()
    changed = (after != before).any(-1)
    assert changed.any() and (changed.all() or name in ("rows", "at", "when", "scheduled"))


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "project"])
def test_pitfall_14_large_states_in_half_precision_stay_finite(name):
    """The norm of a state with entries of 10^4 overflows float16; no operator may take it there."""
    site = sf.resid_post[0]
    random = torch.Generator().manual_seed(3)
    hidden = (1e4 * torch.randn(2, 6, 32, generator=random)).clamp(-3e4, 3e4).half()
    v, w = (sf.SteeringVector({site: torch.randn(32, generator=random)}) for _ in range(2))
    for vectors in ((v, w), (v.to(torch.float16), w.to(torch.float16)), (1e-3 * v, 1e3 * w)):
        out = OPERATORS[name](*vectors)(hidden, sf.Info.of(hidden, site))
        assert out.dtype == torch.float16 and torch.isfinite(out).all()


@dtypes
def test_pitfall_15_a_zero_direction_changes_nothing_in_any_dtype(dtype):
    model = build("llama").to(dtype)
    zero = 0 * vector_at(model, sites_of(model, "resid_post"))
    with torch.no_grad():
        plain = model(token_ids()).logits
        for name, make in OPERATORS.items():
            with sf.steer(model, make(zero, zero)):
                assert_same_bits(model(token_ids()).logits, plain, name)


def test_pitfall_14_int8_weights(tmp_path):
    pytest.importorskip("torchao")
    from saved import save_tiny

    model, _ = sf.from_pretrained(save_tiny(tmp_path), device="cpu", dtype="bf16", quantization="int8")
    ids = token_ids() % 9
    op = sf.chain(
        sf.add(vector_at(model, sites_of(model, "resid_post"))), sf.ablate(vector_at(model, sf.attn_out[1], 5))
    )
    site = sf.resid_post[0]
    with torch.no_grad():
        plain, before = model(ids).logits, sf.capture(model, site)(ids)[1][site]
        with sf.steer(model, op):
            steered, after = model(ids).logits, sf.capture(model, site)(ids)[1][site]
        assert_same_bits(sf.functional(model)(op, ids).logits, steered)
        assert_same_bits(model(ids).logits, plain)
    assert_same_bits(after, before + op.operators[0].vector[site].to(torch.bfloat16))
    assert steered.dtype == plain.dtype and not same_bits(steered, plain)
