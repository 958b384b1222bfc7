"""What `layout` finds, what it says about it, and what it refuses."""

import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from families import CORE, FAMILIES, build
from snapshot import assert_same_bits, unchanged
from steering import everywhere_in, sites_of, token_ids, vector_at
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration
from words import words

import steerfn as sf
from steerfn.values._site import KINDS

# What transformers 4.57 does while it imports some families.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@pytest.mark.parametrize("family", CORE)
def test_finds_every_block_and_changes_nothing(family):
    model = build(family)
    with unchanged(model):
        found = sf.layout(model)
    assert found.n_layers == len(found.blocks) == 3
    assert found.d_model == 32
    assert found.checked.startswith("by a forward pass on ")
    for block in found.blocks:
        assert type(model.get_submodule(block.path)).__name__ == block.kind
        assert {"resid_pre", "resid_post"} <= {*block.kinds}
        assert set(block.kinds) | set(dict(block.missing)) == set(KINDS)
        assert not set(block.kinds) & set(dict(block.missing))
        for path in (block.attn and block.attn.path, block.mlp and block.mlp.path, block.mid, block.projection):
            if path is not None:
                model.get_submodule(f"{block.path}.{path}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # XLNet in 4.57 calls its cache otherwise
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in CORE])
def test_finds_every_block_of_the_other_families(family):
    model = build(family)
    try:
        with unchanged(model):
            found = sf.layout(model)
    except sf.ModelError as error:
        assert "several residual streams" in str(error) or "do not each run once" in str(error)
        return
    assert found.n_layers == (4 if family == "nemotron_h" else 3)  # it has four kinds of blocks
    assert found.d_model == 32 and found.checked.startswith("by a forward pass on ")


def test_prints_where_every_site_is(tiny):
    found = sf.layout(tiny)
    assert found.checked in ("by a forward pass on the meta device", "by a forward pass on cpu")
    assert str(found).splitlines() == [
        f"LlamaForCausalLM: 3 blocks, d_model 32, checked {found.checked}",
        "  blocks 0-2: LlamaDecoderLayer at model.layers.*",
        "    resid_pre   block input",
        "    head_out    input of self_attn.o_proj, 4 heads of 8",
        "    attn_out    output of self_attn",
        "    resid_mid   input of post_attention_layernorm",
        "    mlp_out     output of mlp",
        "    resid_post  block output",
    ]


def test_prints_scales_and_what_is_missing():
    assert "attn_out    output of self_attn * 0.3" in str(sf.layout(build("granite")))
    printed = str(sf.layout(build("qwen3_next")))
    assert "blocks 0: Qwen3NextDecoderLayer at model.layers.0" in printed
    assert "head_out    - (this block has no attention with an output projection)" in printed
    assert "attn_out    output of linear_attn" in printed
    assert "resid_mid   - (attention and MLP run in parallel" in str(sf.layout(build("phi")))


@pytest.mark.parametrize(
    "family", ["llava", "gemma3", "mistral3", "idefics3", "internvl", "qwen2_5_vl", "llama4", "paligemma"]
)
def test_pitfall_25_text_tower_of_a_vision_language_model(family):
    model = build(family)
    found = sf.layout(model)
    towers = [
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.ModuleList) and n.endswith(("layers", "blocks", "layer"))
    ]
    assert len(towers) > 1, "there is a vision tower to be mistaken for the text"
    for block in found.blocks:
        assert not any(word in block.path for word in ("vision", "visual")), block.path
    v = vector_at(model, sf.resid_post[1])
    with torch.no_grad():
        before = model(token_ids()).logits
        with sf.steer(model, v):
            after = model(token_ids()).logits
    assert not torch.allclose(before, after)


def test_pitfall_25_a_vision_tower_of_another_depth_and_images_run():
    """The text is steered, the images are read as before."""
    model = build("llava")
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    tower = "model.vision_tower" if hasattr(model.model, "vision_tower") else "vision_tower"
    seen = []
    handle = model.get_submodule(tower).register_forward_hook(lambda m, a, out: seen.append(out[0].detach().clone()))
    with torch.no_grad():
        patches = model.get_submodule(tower)(pixels).last_hidden_state.shape[1] - 1
        seen.clear()
        model.config.image_token_id = 98  # the default is outside the tiny vocabulary
        ids = torch.cat([torch.full((1, patches), 98), token_ids(1, 4)], 1)
        plain = model(ids, pixel_values=pixels).logits
        with sf.steer(model, everywhere_in(model)):
            steered = model(ids, pixel_values=pixels).logits
    handle.remove()
    assert len(seen) == 2
    assert_same_bits(seen[0], seen[1], "what the vision tower computes")
    assert not torch.allclose(plain, steered)


@pytest.mark.parametrize("family", ["qwen3_next", "jamba", "lfm2", "mllama", "minimax", "bamba", "zamba2"])
def test_pitfall_25_gaps_in_hybrid_models_keep_the_later_blocks(family):
    model = build(family)
    found = sf.layout(model)
    assert [block.path.rpartition(".")[2] for block in found.blocks] == ["0", "1", "2"]
    with torch.no_grad():
        before = model(token_ids()).logits
        for layer in (0, 2):
            with sf.steer(model, vector_at(model, sf.resid_post[layer])):
                assert not torch.allclose(before, model(token_ids()).logits), layer


def test_hybrid_blocks_have_heads_where_there_is_attention():
    kinds = [block.kinds for block in sf.layout(build("qwen3_next")).blocks]
    assert ["head_out" in k for k in kinds] == [False, True, False]
    with pytest.raises(
        sf.SiteError, match=r"has no head_out\[0, 1\]: this block has no attention with an output projection"
    ):
        sf.capture(build("qwen3_next"), sf.head_out[0, 1])


@pytest.mark.parametrize("family", ["phi", "gptj", "gpt_neox", "falcon", "cohere", "cohere2", "stablelm_parallel"])
def test_parallel_attention_has_no_resid_mid(family):
    model = build(family)
    message = (
        rf"^{type(model).__name__} has no resid_mid\[1\]: attention and MLP run in parallel, so no stream lies between "
        r"them\. This block has resid_pre, head_out, attn_out, mlp_out, resid_post\.$"
    )
    site = sf.resid_mid[1]
    v = sf.SteeringVector({site: torch.ones(32)})
    with pytest.raises(sf.SiteError, match=message):
        sf.capture(model, site)
    with pytest.raises(sf.SiteError, match=message), unchanged(model), sf.steer(model, v):
        pass  # pragma: no cover
    with pytest.raises(sf.SiteError, match=message):
        sf.functional(model)(sf.add(v), token_ids())


@pytest.mark.parametrize("family", ["gpt_neox_sequential", "falcon_sequential"])
def test_the_sequential_kinds_of_parallel_families_have_resid_mid(family):
    assert all("resid_mid" in block.kinds for block in sf.layout(build(family)).blocks)


def encoder_decoders():
    small = {"vocab_size": 99, "d_model": 16}
    yield T5ForConditionalGeneration(T5Config(**small, d_ff=16, num_layers=1, num_heads=2, d_kv=8))
    ends = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in [("layers", 1), ("attention_heads", 2), ("ffn_dim", 16)]
    }
    yield BartForConditionalGeneration(BartConfig(**small, **ends, max_position_embeddings=32))


def test_refuses_encoder_decoders():
    for model in encoder_decoders():
        with pytest.raises(
            sf.ModelError, match=rf"{type(model).__name__} is an encoder-decoder.*causal language model"
        ):
            sf.layout(model)


def test_refuses_what_is_no_causal_model(tiny):
    for thing, text in [
        (
            torch.nn.Linear(2, 2),
            "^Linear has no transformers config, so its blocks cannot be found; pass a transformers",
        ),
        (tiny.lm_head, "^Linear has no transformers config"),
        ("gpt2", r"^A model is a torch module .* not 'gpt2' of type str; load one with sf\.from_pretrained\(name\)\.$"),
        (None, "^A model is a torch module .* not None of type NoneType"),
        (type(tiny), "^A model is a torch module .* of type type"),
    ]:
        for verb in (
            sf.layout,
            sf.functional,
            lambda m: sf.capture(m, 0),
            lambda m: sf.steer(m, vector_at(tiny, sf.resid_post[0])).__enter__(),
        ):
            with pytest.raises(sf.ModelError, match=text):
                verb(thing)


@pytest.mark.parametrize("family", ["hrm_text", "deepseek_v4", "hy_v4", "gemma3n_text"])
def test_refuses_blocks_that_run_several_times_or_carry_several_streams(family):
    if family not in FAMILIES:
        pytest.skip("not in this transformers")
    model = build(family)
    text = "do not each run once in a forward pass" if family == "hrm_text" else "keeps several residual streams"
    for verb in (sf.layout, sf.functional, lambda m: sf.capture(m, 0)):
        with pytest.raises(sf.ModelError, match=text), unchanged(model):
            verb(model)


def test_out_of_range_sites_name_what_there_is(tiny):
    for site, text in [
        (
            sf.resid_post[3],
            r"^resid_post\[3\] is out of range: the model has 3 blocks, so a layer is 0 to 2 \(or -3 to -1 from",
        ),
        (sf.resid_pre[-4], r"resid_pre\[-4\] is out of range: the model has 3 blocks"),
        (sf.resid_post[5:], r"resid_post\[5:\] selects no layer of a model with 3 blocks \(0 to 2\)"),
        (
            sf.head_out[1, 4],
            r"^head_out\[1, 4\] is out of range: the attention of this block has 4 heads \(0 to 3\)\.$",
        ),
        (sf.head_out[1, -1], r"head_out\[1, -1\] is out of range"),
        (sf.head_out[9, 0], r"head_out\[9, 0\] is out of range: the model has 3 blocks"),
    ]:
        with pytest.raises(sf.SiteError, match=text):
            sf.capture(tiny, site)
        if not site.is_range:
            v = sf.SteeringVector({site: torch.ones(8 if site.kind == "head_out" else 32)})
            with pytest.raises(sf.SiteError, match=text), sf.steer(tiny, v):
                pass  # pragma: no cover
            with pytest.raises(sf.SiteError, match=text):
                sf.functional(tiny)(sf.add(v), token_ids())


def test_wrong_widths_name_both(tiny):
    for site, width, expected in [(sf.resid_post[1], 33, 32), (sf.attn_out[0], 8, 32), (sf.head_out[1, 2], 32, 8)]:
        v = sf.SteeringVector({site: torch.ones(width)})
        text = rf"has width {width}, but LlamaForCausalLM has width {expected} there: this vector was made for"
        for op in (sf.add(v), sf.ablate(v), sf.at(sf.generated, sf.rotate(v, 1.0)), sf.rows([None, sf.clamp(v, 0.0)])):
            with pytest.raises(sf.ShapeError, match=text), unchanged(tiny), sf.steer(tiny, op):
                pass  # pragma: no cover
            with pytest.raises(sf.ShapeError, match=text):
                sf.functional(tiny)(op, token_ids())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mamba", "bloom", "llava"])
def test_base_models_are_steered_too(family):
    model = build(family)
    base = model.model if family == "llava" else model.base_model
    assert base is not model
    found, whole = sf.layout(base), sf.layout(model)
    assert found.n_layers == 3 and [b.kinds for b in found.blocks] == [b.kinds for b in whole.blocks]
    v = vector_at(model, sf.resid_post[1])
    with torch.no_grad():
        plain = base(token_ids()).last_hidden_state
        with sf.steer(model, v):
            expected = base(token_ids()).last_hidden_state
        with unchanged(model), sf.steer(base, v):
            assert_same_bits(base(token_ids()).last_hidden_state, expected)
            logits = model(token_ids()).logits
        assert_same_bits(base(token_ids()).last_hidden_state, plain)
        assert_same_bits(sf.functional(base)(sf.add(v), token_ids()).last_hidden_state, expected)
        with sf.steer(model, v):
            assert_same_bits(model(token_ids()).logits, logits)
        with unchanged(model), sf.steer(base, v), sf.steer(model, v):  # both ways to one list of blocks: they add up
            twice = base(token_ids()).last_hidden_state
        with sf.steer(model, v, alpha=2.0):
            torch.testing.assert_close(twice, base(token_ids()).last_hidden_state)


def test_compiled_wrappers_are_seen_through(tiny):
    """`torch.compile` of a model, without compiling anything here: the wrapper alone."""
    wrapped = torch.compile(tiny, backend="eager")
    assert sf.layout(wrapped) is sf.layout(tiny)
    assert sf.layout(wrapped).model == "LlamaForCausalLM"
    op = sf.add(vector_at(tiny, sf.resid_post[1]))
    assert_same_bits(sf.functional(wrapped)(op, token_ids()).logits, sf.functional(tiny)(op, token_ids()).logits)
    tiny.model.layers[1] = torch.compile(tiny.model.layers[1], backend="eager")
    assert sf.layout(tiny).blocks[1].kind == "LlamaDecoderLayer"


def test_layout_is_cached(tiny):
    found = sf.layout(tiny)
    assert sf.layout(tiny) is found
    assert sf.layout(tiny, check=False) is found
    other = build("llama")
    by_name = sf.layout(other, check=False)
    assert by_name.checked == "by name only" and by_name.blocks == found.blocks
    assert sf.layout(other, check=False) is by_name
    assert sf.layout(other).checked == found.checked != "by name only"


def test_the_users_hooks_do_not_run_in_the_check():
    model, calls = build("llama"), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    sf.layout(model)
    assert calls == []


def test_a_model_asked_for_its_hidden_states_in_the_config_is_not_touched_by_the_check():
    for family in ("llama", "gpt2", "mamba", "mixtral"):
        model = build(family)
        model.config.output_hidden_states = True
        with unchanged(model):
            assert sf.layout(model).checked.startswith("by a forward pass on ")


def test_a_training_model_stays_in_training(tiny):
    tiny.train()
    with unchanged(tiny):
        sf.layout(tiny)


def test_the_random_state_is_left_alone(tiny):
    before = torch.random.get_rng_state()
    sf.layout(tiny)
    sf.layout(build("mixtral").train())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "mixtral"])
@pytest.mark.parametrize("use", ["layout", "context", "generate", "functional", "params", "capture", "hidden states"])
def test_caches_keep_no_model_alive(family, use):
    model = build(family)
    v = vector_at(model, sf.resid_post[1])
    if use == "layout":
        sf.layout(model)
    elif use == "context":
        with sf.steer(model, everywhere_in(model)):
            model(token_ids())
    elif use == "generate":
        with sf.steer(model, v):
            model.generate(token_ids(), max_new_tokens=2, do_sample=False)
    elif use == "capture":
        sf.capture(model, sites_of(model))(token_ids())
    elif use == "hidden states":
        with sf.steer(model, v):
            model(token_ids(), output_hidden_states=True)
        sf.functional(model)(sf.add(v), token_ids(), output_hidden_states=True)
    else:
        params = {"params": dict(model.named_parameters())} if use == "params" else {}
        sf.functional(model)(sf.add(v), token_ids(), **params)
        del params
    dead = weakref.ref(model)
    blocks = weakref.ref(model.get_submodule(sf.layout(model).blocks[0].path))
    del model
    gc.collect()
    assert dead() is None and blocks() is None


def test_a_steering_that_was_closed_or_never_opened_keeps_only_the_model():
    """The object itself holds the model, and nothing else does."""
    model = build("llama")
    steering = sf.steer(model, vector_at(model, sf.resid_post[1]))
    with steering:
        model(token_ids())
    dead = weakref.ref(model)
    del model, steering
    gc.collect()
    assert dead() is None


def test_no_warnings_about_anything():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for family in ("llama", "gpt2", "llava"):
            print(sf.layout(build(family)))


def test_models_pickle_and_copy_after_use(tiny):
    """Nothing that a context, the pure view or a capture leaves on a model stops it from being sent elsewhere."""
    plain, v = tiny(token_ids()).logits.detach(), vector_at(tiny, [sf.resid_post[1], sf.attn_out[0]])
    with sf.steer(tiny, v):
        steered = tiny(token_ids()).logits.detach()
        tiny.generate(token_ids(), max_new_tokens=2, do_sample=False)
    sf.functional(tiny)(sf.add(v), token_ids())
    sf.capture(tiny, 1)(token_ids())
    for twin in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert_same_bits(twin(token_ids()).logits.detach(), plain)
        with sf.steer(twin, v):
            assert_same_bits(twin(token_ids()).logits.detach(), steered)
            assert_same_bits(tiny(token_ids()).logits.detach(), plain)


def steered_by_hand(model, block, v):
    """The logits with a vector added to a block's output by a hook."""

    def add(module, args, out):
        first = out[0] if isinstance(out, tuple) else out
        steered = first + v.directions[0]
        return (steered, *out[1:]) if isinstance(out, tuple) else steered

    handle = block.register_forward_hook(add)
    try:
        with torch.no_grad():
            return model(token_ids(), use_cache=False).logits
    finally:
        handle.remove()


def changed_models():
    """What people do to the blocks of a model that was used before."""

    def cut(model):
        model.model.layers = model.model.layers[:2]
        model.config.num_hidden_layers = 2

    def cut_in_place(model):
        del model.model.layers[2]

    def appended(model):
        model.model.layers.append(copy.deepcopy(model.model.layers[0]))
        model.config.num_hidden_layers = 4

    def swapped(model):
        model.model.layers[2] = copy.deepcopy(model.model.layers[0])

    def reordered(model):
        model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in (2, 0, 1)])

    def forward_replaced(model):
        block = model.model.layers[2]
        plain = block.forward
        block.forward = lambda hidden, *args, **kwargs: plain(hidden * 0.5, *args, **kwargs)

    def compiled(model):
        model.model.layers[2] = torch.compile(model.model.layers[2], backend="eager")

    return [cut, cut_in_place, appended, swapped, reordered, forward_replaced, compiled]


@pytest.mark.parametrize("change", changed_models(), ids=lambda change: change.__name__)
def test_pitfall_43_a_model_that_changes_after_its_first_use(tiny, change):
    """Every verb sees the blocks as they are, whatever it found before: the last is the last."""
    v = sf.SteeringVector({sf.resid_post[-1]: 3 * torch.randn(32, generator=torch.Generator().manual_seed(3))})
    f, capture = sf.functional(tiny), sf.capture(tiny, -1)
    sf.activations(tiny, words(), ["a b"], -1, progress=False)
    with sf.steer(tiny, v), torch.no_grad():
        tiny(token_ids())
    f(sf.add(v), token_ids(), params={}), capture(token_ids())
    change(tiny)
    n = len(tiny.model.layers)
    expected = steered_by_hand(tiny, tiny.model.layers[n - 1], v)
    with torch.no_grad():
        plain = tiny(token_ids(), use_cache=False).logits
        assert not torch.allclose(plain, expected)
        with sf.steer(tiny, v):
            assert_same_bits(tiny(token_ids(), use_cache=False).logits, expected)
        for view in (f, sf.functional(tiny)):
            assert_same_bits(view(sf.add(v), token_ids(), use_cache=False).logits, expected)
            assert_same_bits(view(sf.add(v), token_ids(), params={}, use_cache=False).logits, expected)
            assert_same_bits(view(sf.identity, token_ids(), use_cache=False).logits, plain)
        assert sf.layout(tiny).n_layers == n
        last = sf.resid_post[n - 1]
        state = capture(token_ids(), use_cache=False)[1][last]
        assert_same_bits(tiny.lm_head(tiny.model.norm(state)), plain)
    assert list(sf.activations(tiny, words(), ["a b"], -1, progress=False)) == [last]


def test_what_was_found_out_about_a_model_goes_with_its_blocks(tiny):
    """Whether texts may share rows, say: asked again of other blocks, and not of the same."""
    from steerfn.run._capabilities import _known

    def asked():
        sf.activations(tiny, words(), ["a b", "a c"], 1, progress=False)
        return _known[sf.layout(tiny)]

    before = asked()
    assert asked() is before
    tiny.model.layers[1] = copy.deepcopy(tiny.model.layers[0])
    assert asked() is not before


def with_copies(model, *names):
    """A model with PEFT's trainable copies of some modules, which are what runs."""
    from peft import LoraConfig, get_peft_model

    options = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["lm_head"], "modules_to_save": list(names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by an old name whether it checkpoints
        made = get_peft_model(model, LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.1)
    return made


@pytest.mark.parametrize("names", [["self_attn"], ["o_proj"], ["mlp", "post_attention_layernorm"], ["1"], ["model"]])
def test_pitfall_44_the_copies_that_peft_trains_are_what_is_steered(tiny, names):
    """At every site, also of the model inside and of one that was used before it was wrapped."""
    sf.layout(tiny)
    model = with_copies(tiny, *names)
    ops = [sf.add(vector_at(model, site)) for site in sites_of(model) if site.layer == 1]
    assert len(ops) == 7
    for op in ops:
        with torch.no_grad():
            plain = model(token_ids()).logits
            with unchanged(model), sf.steer(model, op):
                steered = model(token_ids()).logits
            with sf.steer(tiny, op):
                assert_same_bits(model(token_ids()).logits, steered)
            assert_same_bits(sf.functional(model)(op, token_ids()).logits, steered)
        assert not torch.allclose(steered, plain), op.sites
    v = vector_at(model, sf.resid_post[1])
    path = sf.layout(model).blocks[1].path
    expected = steered_by_hand(model, model.get_submodule(path), v)
    with sf.steer(model, v), torch.no_grad():
        assert_same_bits(model(token_ids(), use_cache=False).logits, expected)
    with model.disable_adapter(), torch.no_grad():
        plain = model(token_ids()).logits
        for op in ops:
            with sf.steer(model, op):
                assert not torch.allclose(model(token_ids()).logits, plain), op.sites


def renamed(model):
    """A model whose blocks no rule finds."""
    model.model.units = model.model.layers
    del model.model.layers
    forward = type(model.model).forward

    def through_units(self, *args, **kwargs):
        self._modules["layers"] = self._modules["units"]
        try:
            return forward(self, *args, **kwargs)
        finally:
            del self._modules["layers"]

    model.model.__class__ = type("Units", (type(model.model),), {"forward": through_units})
    return model


def test_blocks_may_be_named(tiny):
    v, expected = vector_at(tiny, [sf.resid_post[1], sf.mlp_out[0]]), sf.layout(tiny).blocks
    with sf.steer(tiny, v), torch.no_grad():
        steered = tiny(token_ids()).logits
    model = renamed(build("llama"))
    with pytest.raises(sf.ModelError, match=r'say where they are: sf\.layout\(model, blocks="path\.to\.the\.blocks"\)'):
        sf.steer(model, v).__enter__()
    for wrong in ("", "model.nothing", "model.norm", 3):
        with pytest.raises(sf.ModelError, match=r"its lists of modules are model\.units"):
            sf.layout(model, blocks=wrong)
    with pytest.raises(sf.ModelError, match="No decoder blocks were found"):
        sf.layout(model)
    found = sf.layout(model, blocks="model.units")
    assert [b.path for b in found.blocks] == ["model.units.0", "model.units.1", "model.units.2"]
    assert [b.kinds for b in found.blocks] == [b.kinds for b in expected] and found.checked.startswith("by a forward")
    assert sf.layout(model) is found
    with torch.no_grad():
        with sf.steer(model, v):  # every verb goes by it
            assert_same_bits(model(token_ids()).logits, steered)
        assert_same_bits(sf.functional(model)(sf.add(v), token_ids()).logits, steered)
    assert list(sf.capture(model, -1)(token_ids())[1]) == [sf.resid_post[2]]
    assert list(sf.activations(model, words(), ["a b"], -1, progress=False)) == [sf.resid_post[2]]


def test_blocks_that_are_named_are_checked():
    model = build("llava")
    tower = next(n for n, m in model.named_modules() if n.endswith("encoder.layers") and len(m))
    with pytest.raises(sf.ModelError, match=rf"blocks of .* at {tower} do not each run once .* \(they ran as \[\]\)"):
        sf.layout(model, blocks=tower)
    assert sf.layout(model).path != tower  # a path that was refused is not remembered


def test_blocks_that_did_not_run_in_the_check_are_named():
    found = sf.layout(build("mllama"))
    assert found.idle == (1,) and "in which blocks 1 did not run" in str(found).splitlines()[0]
    assert sf.layout(build("llama")).idle == ()


def test_checks_of_two_threads_leave_the_compiler_as_it_was():
    """Whether compiled code runs is a setting of the process: overlapping checks must not leave it switched off."""
    first, second = build("llama"), build("llama")
    inside, first_is_done = threading.Event(), threading.Event()
    thread = threading.Thread(target=sf.layout, args=(second,))

    def during_the_first():
        if thread.ident is None:
            thread.start()
            inside.wait(0.5)  # in vain where checks run one after the other

    def during_the_second():
        inside.set()
        first_is_done.wait(5)

    for model, during in ((first, during_the_first), (second, during_the_second)):
        model.model.layers[0].mlp.act_fn.forward = lambda x, during=during: (during(), x)[1]
    sf.layout(first)
    first_is_done.set()
    thread.join()
    runs = []
    torch.compile(lambda x: x + 1, backend=lambda graph, _: runs.append(graph) or graph.forward)(torch.ones(2))
    assert len(runs) == 1
