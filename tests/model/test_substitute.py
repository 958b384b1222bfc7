"""A substituted module answers as the original, whatever others ask of it or do to it."""

import contextlib
import contextvars
import copy
import inspect
import io
import pickle
import threading
import types

import pytest
import torch
from families import build
from snapshot import assert_same_bits, same_bits, unchanged
from steering import everywhere_in, token_ids, vector_at
from torch import nn

import steerfn as sf


def logits(model, **options):
    with torch.no_grad():
        return model(token_ids(), **options).logits


def steered(model):
    return sf.steer(model, everywhere_in(model))


def substituted(model):
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


METHODS = ("forward", "generate", "prepare_inputs_for_generation")


def asked(model):
    """What others ask of the methods of a model's modules."""
    found = {}
    for path, module in model.named_modules():
        for name in METHODS if path == "" else METHODS[:1]:
            method = getattr(module, name)
            inner = inspect.unwrap(method)
            found[path, name] = (
                inspect.signature(method),
                getattr(inner, "__func__", inner),
                method.__name__,
                method.__qualname__,
                method.__doc__,
                method.__annotations__,
                method.__self__ is module,
                inspect.ismethod(method),
            )
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_pitfall_39_methods_look_like_the_modules_own(family):
    model = build(family)
    outside = asked(model)
    with steered(model):
        assert len(substituted(model)) > 5
        for key, answers in asked(model).items():
            assert answers == outside[key], key


def test_pitfall_39_a_forward_in_the_instance_dict_keeps_its_signature():
    model = build("llama")
    block = model.model.layers[1]

    def bound(hidden_states, *args, extra=None, **kwargs):
        return type(block).forward(block, hidden_states, *args, **kwargs)

    block.forward = bound
    outside = inspect.signature(block.forward)
    with steered(model):
        assert inspect.signature(block.forward) == outside
    assert block.forward is bound


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    assert b"steerfn" not in file.getvalue()
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "torch.save": saved,
}


@pytest.mark.parametrize("how", COPIES)
def test_pitfall_39_a_copy_that_is_made_inside_is_the_plain_model(how):
    model = build("llama")
    plain = logits(model)
    with steered(model):
        other = COPIES[how](model)
        assert_same_bits(logits(other), plain)
        assert not same_bits(logits(model), plain)
    for (name, ours), (_, theirs) in zip(model.named_modules(), other.named_modules(), strict=True):
        assert ours.__dict__.keys() == theirs.__dict__.keys(), name
    with steered(other):
        assert not same_bits(logits(other), plain)
    assert_same_bits(logits(model), plain)


def test_a_replica_is_plain_and_says_so():
    model = build("llama")
    plain, block = logits(model), model.model.layers[1]
    with steered(model):
        with pytest.warns(sf.SteerWarning, match="unsteered"):
            replica = block._replicate_for_data_parallel()
        assert "forward" not in replica.__dict__
        replicas = []
        thread = threading.Thread(target=lambda: replicas.append(block._replicate_for_data_parallel()))
        thread.start()  # it steers nothing, so it is told nothing
        thread.join()
        assert replicas[0].__dict__.keys() == block._replicate_for_data_parallel.__self__.__dict__.keys() - {
            "forward",
            "__getstate__",
            "_replicate_for_data_parallel",
        } | {"_is_replica"}
    assert_same_bits(logits(model), plain)


def test_modules_keep_their_identity():
    model = build("llama")
    before = dict(model.named_modules())
    with steered(model):
        assert all(module is before[name] for name, module in model.named_modules())


def test_hooks_on_a_block_held_from_before():
    model, seen = build("llama"), []
    block = model.model.layers[1]
    with unchanged(model), steered(model):
        handle = block.register_forward_hook(lambda module, args, out: seen.append((module, out)))
        found = sf.capture(model, sf.resid_post[1])(token_ids())[1][sf.resid_post[1]]
        handle.remove()
    [(module, out)] = seen
    assert module is block
    assert_same_bits(out.detach(), found.detach())  # hooks see the steered state


def test_a_class_and_a_forward_that_change_inside():
    model = build("llama")
    block, plain = model.model.layers[1], logits(model)

    class Doubled(type(block)):
        def forward(self, hidden_states, *args, **kwargs):
            return 2 * super().forward(hidden_states, *args, **kwargs)

    with sf.steer(model, vector_at(model, sf.resid_post[1])):
        block.__class__ = Doubled
        inside = logits(model)
    assert type(block) is Doubled
    assert not same_bits(logits(model), plain)
    with sf.steer(model, vector_at(model, sf.resid_post[1])):
        assert_same_bits(logits(model), inside)


def test_accelerates_hooks_put_on_inside_leave_nothing():
    hooks = pytest.importorskip("accelerate.hooks")
    model = build("llama")
    plain, calls, block = logits(model), [], model.model.layers[1]

    class Noting(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return args, kwargs

    with steered(model):
        inside = logits(model)
        hooks.add_hook_to_module(block, Noting())
        assert_same_bits(logits(model), inside)
    assert_same_bits(logits(model), plain)
    assert calls == [block, block]
    assert block._old_forward.__func__ is type(block).forward
    hooks.remove_hook_from_module(block)
    assert_same_bits(logits(model), plain)
    with steered(model):
        assert_same_bits(logits(model), inside)


def test_a_module_that_two_blocks_share_is_refused_where_it_is_a_site():
    model, other = build("llama"), build("llama")
    model.model.layers[2].mlp = model.model.layers[1].mlp
    other.model.layers[2].mlp = copy.deepcopy(other.model.layers[1].mlp)
    for site in (sf.resid_post[2], sf.attn_out[1], sf.mlp_out[2]):
        op = sf.add(vector_at(model, site))
        with sf.steer(other, op):
            expected = logits(other)
        with torch.no_grad():
            assert_same_bits(sf.functional(model)(op, token_ids()).logits, expected)
        if site.kind == "mlp_out":
            with pytest.raises(sf.ModelError, match=r"layers.2.mlp and model.layers.1.mlp"), sf.steer(model, op):
                pass  # pragma: no cover
        else:
            with sf.steer(model, op):
                assert_same_bits(logits(model), expected)


# Which object is called


def padded():
    mask = torch.ones_like(token_ids())
    mask[0, :3] = 0
    return {"input_ids": token_ids(), "attention_mask": mask}


GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


def test_a_backbone_held_from_before():
    model = build("llama")
    backbone, op = model.model, sf.at(sf.last_prompt_token, sf.add(everywhere_in(model)))
    with torch.no_grad(), sf.steer(model, op):
        expected = sf.capture(model, sf.resid_post[2])(**padded())[1]
        found = sf.capture(backbone, sf.resid_post[2])(**padded())[1]
    assert_same_bits(found[sf.resid_post[2]], expected[sf.resid_post[2]])


def test_generate_past_the_context_is_steered_or_refused():
    """The class's own `generate`, and the model's while only its backbone is steered."""
    model = build("llama")
    v = vector_at(model, sf.resid_post[1], scale=3.0)
    with sf.steer(model, v):
        expected = model.generate(**padded(), **GREEDY)
    assert not torch.equal(expected, model.generate(**padded(), **GREEDY))
    for opened in (model, model.model):
        with sf.steer(opened, v):
            assert torch.equal(type(model).generate(model, **padded(), **GREEDY), expected)
        for op in (
            sf.at(sf.generated, sf.add(v)),
            sf.when(sf.on_prompt(sf.projection_above(v, 0.0), by="mean"), sf.add(v)),
        ):
            with (
                sf.steer(opened, op),
                pytest.raises(sf.SteerError, match=r"LlamaForCausalLM.generate was not called on a model that"),
            ):
                type(model).generate(model, **padded(), **GREEDY)
    with sf.steer(model.model, sf.at(sf.generated, sf.add(v))):
        logits(model)  # outside of `generate` a pass is all prompt
        with pytest.raises(sf.SteerError, match=r"sf.steer\(model, ...\)"):
            model.generate(**padded(), **GREEDY)


def test_another_models_generate_around_a_steered_pass_is_no_reason_to_refuse():
    """A steered judge or reward model that is called inside it has no `generate` of its own."""
    model, judge = build("llama"), build("llama")
    op = sf.at(sf.generated, sf.add(vector_at(judge, sf.resid_post[1])))
    seen = []

    def processor(ids, scores):
        seen.append(logits(judge))
        return scores

    with sf.steer(judge, op):
        model.generate(**padded(), **GREEDY, logits_processor=[processor])
        expected = logits(judge)
    assert len(seen) == 4
    assert_same_bits(seen[0], expected)


def resumed(steps):
    """What a generator gives whose every `next` runs in a fresh copy of the context, in another thread."""
    found = []

    def one():
        with contextlib.suppress(StopIteration):
            found.append(contextvars.copy_context().run(next, steps))

    for _ in range(3):
        thread = threading.Thread(target=one)
        thread.start()
        thread.join()
    steps.close()
    return found


def test_pitfall_45_a_generator_is_steered_throughout():
    model = build("llama")
    v, w = vector_at(model, sf.resid_post[1]), vector_at(model, sf.resid_post[0], seed=1)
    plain, op = logits(model), sf.chain(sf.add(v), sf.ablate(w))
    with sf.steer(model, sf.ablate(w)), sf.steer(model, v):
        expected = logits(model)

    @contextlib.contextmanager
    def helper():
        with sf.steer(model, v):
            yield

    def pieces():
        with sf.steer(model, sf.ablate(w)), helper():
            while True:
                yield logits(model)
                assert not same_bits(logits(model), plain)

    for _ in range(2):
        with unchanged(model):
            steps = pieces()
            for found in (next(steps), *resumed(steps)):
                assert_same_bits(found, expected)
        steps = pieces()
        for found in resumed(steps):
            assert_same_bits(found, expected)
        assert_same_bits(logits(model), plain)
    assert sf.functional(model)(op, token_ids()).logits.shape == plain.shape


def test_pitfall_45_generation_in_a_resumed_generator_knows_its_prompt():
    model = build("llama")
    op = sf.at(sf.generated, sf.add(vector_at(model, sf.resid_post[1], scale=3.0)))
    with sf.steer(model, op):
        expected = model.generate(**padded(), **GREEDY)

    def pieces():
        with sf.steer(model, op):
            while True:
                yield model.generate(**padded(), **GREEDY)

    assert all(torch.equal(found, expected) for found in resumed(pieces()))


def test_pitfall_45_what_runs_outside_of_a_resumed_generator_is_not_steered_and_said():
    """A web framework's dependency: the context is open, and the model is called elsewhere."""
    model = build("llama")
    plain = logits(model)

    def dependency():
        with sf.steer(model, everywhere_in(model)):
            yield

    steps = dependency()
    contextvars.copy_context().run(next, steps)
    assert_same_bits(logits(model), plain)
    with pytest.warns(sf.SteerWarning, match="opened inside a generator steered nothing"):
        next(steps, None)


class Wrapper(nn.Module):
    """As FSDP, activation checkpointing and repeng wrap a block."""

    def __init__(self, name, module):
        super().__init__()
        self._name = name
        self.add_module(name, module)

    def forward(self, *args, **kwargs):
        return self._modules[self._name](*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__["_modules"].get(self.__dict__["_name"])
            if inner is None:
                raise
            return getattr(inner, name)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_wrapped_blocks(family):
    model, wrapped = build(family), build(family)
    blocks = wrapped.get_submodule(sf.layout(wrapped).path)
    for i, name in enumerate(["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "block"]):
        blocks[i] = Wrapper(name, blocks[i])
    blocks[1] = Wrapper("_fsdp_wrapped_module", blocks[1])
    v = everywhere_in(model)
    with sf.steer(model, v):
        expected = logits(model)
    assert not same_bits(expected, logits(model))
    with unchanged(wrapped), sf.steer(wrapped, v):
        assert_same_bits(logits(wrapped), expected)
    with torch.no_grad():
        assert_same_bits(sf.functional(wrapped)(v, token_ids()).logits, expected)


def replace_block(model):
    model.model.layers[1] = copy.deepcopy(build("llama").model.layers[1])


def replace_forward(model):
    model.model.layers[1].forward = types.MethodType(type(model.model.layers[1]).forward, model.model.layers[1])


@pytest.mark.parametrize("change", [replace_block, replace_forward])
def test_pitfall_44_what_takes_a_sites_place_inside_a_context_is_told(tiny, prompt, change):
    v = sf.SteeringVector({sf.resid_post[1]: torch.ones(32)})
    with pytest.warns(sf.SteerWarning, match=r"took the place of model\.layers\.1: what ran there since was unsteered"):
        with sf.steer(tiny, v), torch.no_grad():
            steered = tiny(prompt).logits
            change(tiny)
            unsteered = tiny(prompt).logits
    with torch.no_grad():
        assert torch.equal(tiny(prompt).logits, unsteered) and not torch.equal(steered, unsteered)
