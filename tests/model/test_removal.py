"""Removal is exact: whatever happens inside a context, the model afterwards is bit for bit what it was."""

import contextlib
import copy
import functools

import pytest
import torch
from families import CORE, build
from snapshot import Snapshot, assert_same_bits, assert_unchanged, same_bits, unchanged
from steering import everywhere_in, raising, sites_of, token_ids, vector_at

import steerfn as sf
from steerfn.model import _substitute
from steerfn.verbs._steer import OUT_OF_REACH

MOE = {"mixtral", "qwen2_moe", "gpt_oss", "jamba", "qwen3_next"}
"""Experts multiply the tokens of all rows at once, so one row's rounding depends on the others."""

families = pytest.mark.parametrize("family", CORE)


def logits(model, ids=None):
    with torch.no_grad():
        return model(token_ids() if ids is None else ids).logits


def warmed(family):
    """A tiny model that has run once (some families note things down on themselves at their first forward)."""
    model = build(family)
    return model, logits(model)


@functools.cache
def kept(family):
    """One for all tests after which nothing on it has changed, which is what they prove."""
    return warmed(family)


@families
def test_after_normal_return(family):
    model, plain = kept(family)
    v = everywhere_in(model)
    with unchanged(model):
        with sf.steer(model, v):
            steered = logits(model)
            model.generate(token_ids(), max_new_tokens=2, do_sample=False)
        assert_same_bits(logits(model), plain)
    assert not torch.allclose(steered, plain)


@families
@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_after_an_exception_in_the_model(family, error):
    model, plain = kept(family)
    broken = sf.chain(sf.add(everywhere_in(model)), raising(vector_at(model, sf.resid_post[1]), error))
    for call in (logits, lambda m: m.generate(token_ids(), max_new_tokens=2, do_sample=False)):
        with unchanged(model), pytest.raises(type(error)) as caught:
            with sf.steer(model, broken):
                call(model)
        assert caught.value is error
        assert_same_bits(logits(model), plain)


@families
def test_after_an_exception_in_the_block(family):
    model, plain = kept(family)
    with unchanged(model), pytest.raises(ZeroDivisionError), sf.steer(model, everywhere_in(model)):
        logits(model)
        raise ZeroDivisionError
    assert_same_bits(logits(model), plain)


@families
def test_pitfall_06_failure_during_set_up(family, monkeypatch):
    model, plain = warmed(family)
    v = everywhere_in(model)
    bad = [
        (
            sf.add(vector_at(model, sf.resid_post[1]) + sf.SteeringVector({sf.resid_post[9]: torch.zeros(32)})),
            "has 3 blocks",
        ),
        (sf.add(sf.SteeringVector({sf.resid_post[1]: torch.ones(31)})), "width 31"),
    ]
    for op, text in bad:
        with unchanged(model), pytest.raises(sf.SteerError, match=text), sf.steer(model, op):
            pass  # pragma: no cover
        assert_same_bits(logits(model), plain)

    real, left = _substitute.Shadow, [0]

    def failing(*args):
        if left[0] == 0:
            raise MemoryError("in the middle of set-up")
        left[0] -= 1
        return real(*args)

    monkeypatch.setattr(_substitute, "Shadow", failing)
    for n in (0, 1, 2, 5):
        left[0] = n
        if n == 5 and family == "mamba":
            continue  # its blocks have fewer modules to swap
        with unchanged(model), pytest.raises(MemoryError, match="in the middle of set-up"), sf.steer(model, v):
            pass  # pragma: no cover
        assert_same_bits(logits(model), plain)
    left[0] = 1000
    with unchanged(model), sf.steer(model, v):
        assert not same_bits(logits(model), plain)


def test_pitfall_06_failure_during_set_up_inside_another_context(monkeypatch):
    model, plain = warmed("llama")
    outer = vector_at(model, sf.resid_post[0])
    with unchanged(model), sf.steer(model, outer):
        steered = logits(model)
        inside = Snapshot.of(model)
        monkeypatch.setattr(_substitute, "Shadow", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), sf.steer(model, everywhere_in(model)):
            pass  # pragma: no cover
        monkeypatch.undo()
        assert_unchanged(model, inside)
        assert_same_bits(logits(model), steered)
        with sf.steer(model, everywhere_in(model)):
            assert not same_bits(logits(model), steered)
        assert_same_bits(logits(model), steered)
    assert_same_bits(logits(model), plain)


@families
def test_generator_close(family):
    model, plain = kept(family)

    def steps():
        with sf.steer(model, everywhere_in(model)):
            while True:
                yield logits(model)

    with unchanged(model):
        running = steps()
        first, second = next(running), next(running)
        running.close()
    assert_same_bits(first, second)
    assert not same_bits(first, plain)
    assert_same_bits(logits(model), plain)


@families
def test_nested_contexts_and_closes_in_any_order(family):
    model, plain = kept(family)
    last = len(sf.layout(model).blocks) - 1
    ops = [
        sf.add(everywhere_in(model, seed=1)),
        sf.add(vector_at(model, [sf.resid_post[0], sf.resid_pre[last]], seed=2)),
        sf.ablate(vector_at(model, sf.resid_post[last], seed=3)),
    ]

    def alone(*kept):
        with contextlib.ExitStack() as stack:
            for i in kept:
                stack.enter_context(sf.steer(model, ops[i]))
            return logits(model)

    with unchanged(model):
        expected = {kept: alone(*kept) for kept in [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]}
        for order in [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)]:
            opened = [sf.steer(model, op).__enter__() for op in ops]
            left = [0, 1, 2]
            for i in order:
                assert_same_bits(logits(model), expected[tuple(left)], f"{left} open")
                opened[i].close()
                opened[i].close()  # closing twice is closing once
                left.remove(i)
            assert_same_bits(logits(model), plain)
        first, second = contextlib.ExitStack(), contextlib.ExitStack()
        first.enter_context(sf.steer(model, ops[0]))
        second.enter_context(sf.steer(model, ops[1]))
        first.close()
        assert_same_bits(logits(model), expected[1,])
        second.close()
    assert_same_bits(logits(model), plain)


@families
def test_pitfall_08_names_and_types_inside_the_context(family):
    model, plain = kept(family)
    before = Snapshot.of(model)
    same = (
        "class",
        "state_dict keys",
        "parameter names",
        "buffer names",
        "module names",
        "config",
        "generation_config",
    )
    with sf.steer(model, everywhere_in(model)):
        logits(model)
        inside = Snapshot.of(model)
        for key in same:
            assert inside.facts[key] == before.facts[key], key
        for name, module in model.named_modules():
            assert type(module) is before.facts[f"{name}: type"], name
            assert id(module) == before.facts[f"{name}: id"], name
            shadows = {
                "forward",
                "generate",
                "prepare_inputs_for_generation",
                "__getstate__",
                "_replicate_for_data_parallel",
                *OUT_OF_REACH,
            }
            assert sorted(module.__dict__.keys() - shadows) == [
                attribute for attribute in before.facts[f"{name}: attributes"] if attribute != "forward"
            ], name
        assert all(same_bits(inside.tensors[key], value) for key, value in before.tensors.items())
    assert_unchanged(model, before)
    assert_same_bits(logits(model), plain)


@families
def test_train_and_eval_inside_persist(family):
    model, _ = kept(family)
    with sf.steer(model, everywhere_in(model)):
        model.train()
    assert [n for n, m in model.named_modules() if not m.training] == []
    with sf.steer(model, everywhere_in(model)):
        model.eval()
    assert [n for n, m in model.named_modules() if m.training] == []


@families
def test_hooks_registered_inside_persist(family):
    model, plain = kept(family)
    block = sf.layout(model).blocks[1].path
    sublayers = [a.path for a in (sf.layout(model).blocks[1].attn, sf.layout(model).blocks[1].mlp) if a is not None]
    calls, handles, before = [], [], Snapshot.of(model)
    with sf.steer(model, everywhere_in(model)):
        for path in [block, *(f"{block}.{p}" for p in sublayers)]:
            handles.append(model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path)))
        logits(model)
        inside = sorted(calls)
    calls.clear()
    assert_same_bits(logits(model), plain)
    assert sorted(calls) == inside == sorted({block, *(f"{block}.{p}" for p in sublayers)})
    for handle in handles:
        handle.remove()
    assert_unchanged(model, before)


def test_hooks_registered_before_run_inside_once_and_are_removable_inside():
    model, plain = warmed("llama")
    calls = []
    handle = model.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    with sf.steer(model, everywhere_in(model)):
        logits(model)
        assert calls == [1]
        handle.remove()
        logits(model)
    assert_same_bits(logits(model), plain)
    assert calls == [1]


@pytest.mark.parametrize("where", ["the block", "its attention", "its mlp", "a module beside", "the list"])
def test_a_module_replaced_inside_stays(where):
    model, plain = warmed("llama")
    other = build("llama").model.layers[2]
    beside = where == "a module beside"
    told = contextlib.nullcontext() if beside else pytest.warns(sf.SteerWarning, match="took the place of model.layers")
    with told, sf.steer(model, everywhere_in(model)):
        block = model.model.layers[1]
        if where == "the block":
            model.model.layers[1] = other
        elif where == "its attention":
            block.self_attn = other.self_attn
        elif where == "its mlp":
            block.mlp = other.mlp
        elif where == "a module beside":
            block.input_layernorm = other.input_layernorm
        else:
            model.model.layers = torch.nn.ModuleList([other, *list(model.model.layers)[1:]])
    now = model.model.layers
    found = {
        "the block": now[1] is other,
        "its attention": now[1].self_attn is other.self_attn,
        "its mlp": now[1].mlp is other.mlp,
        "a module beside": now[1].input_layernorm is other.input_layernorm,
        "the list": now[0] is other,
    }
    assert found[where]
    assert not same_bits(logits(model), plain)
    if where != "the list":  # a list that was filled with clones keeps them; they pass everything straight through
        assert [n for n, m in model.named_modules() if "forward" in m.__dict__] == []
    expected = build("llama")
    path, part = {
        "the block": ("1", other),
        "its attention": ("1.self_attn", other.self_attn),
        "its mlp": ("1.mlp", other.mlp),
        "a module beside": ("1.input_layernorm", other.input_layernorm),
        "the list": ("0", other),
    }[where]
    expected.model.layers.set_submodule(path, part)
    assert_same_bits(logits(model), logits(expected))


def test_attributes_set_and_deleted_inside_persist():
    model, plain = warmed("llama")
    model.model.layers[1].mark = 1
    model.mark = 1
    with sf.steer(model, everywhere_in(model)):
        block = model.model.layers[1]
        block.note, model.note = "kept", "kept"
        del block.mark, model.mark
    block = model.model.layers[1]
    assert block.note == model.note == "kept"
    assert not hasattr(model, "mark") and not hasattr(block, "mark")
    assert_same_bits(logits(model), plain)


def test_a_generate_set_inside_stays():
    model, _ = warmed("llama")
    with sf.steer(model, everywhere_in(model)):
        model.generate = len
    assert model.generate is len


def test_dtype_and_parameters_changed_inside_persist():
    model, plain = warmed("llama")
    with sf.steer(model, everywhere_in(model)):
        model.double()
        assert logits(model).dtype == torch.float64
        model.float()
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.zero_()
            model.model.layers[1].self_attn.o_proj.weight = torch.nn.Parameter(torch.zeros(32, 32))
    expected = build("llama")
    with torch.no_grad():
        expected.model.layers[1].mlp.down_proj.weight.zero_()
        expected.model.layers[1].self_attn.o_proj.weight.zero_()
    assert_same_bits(logits(model), logits(expected))
    assert not same_bits(logits(model), plain)


def test_load_state_dict_and_save_inside(tmp_path):
    model, plain = warmed("llama")
    twin = build("llama")
    with torch.no_grad():
        twin.lm_head.weight.mul_(2)
    with sf.steer(model, everywhere_in(model)):
        model.save_pretrained(tmp_path)
        model.load_state_dict(twin.state_dict())
    assert_same_bits(logits(model), logits(twin))
    assert_same_bits(logits(type(model).from_pretrained(tmp_path).eval()), plain)


def test_deepcopy_inside_is_an_unsteered_model():
    model, plain = warmed("llama")
    with sf.steer(model, everywhere_in(model)):
        steered = logits(model)
        twin = copy.deepcopy(model)
        assert_same_bits(logits(twin), plain)
        with sf.steer(twin, everywhere_in(model)):
            assert_same_bits(logits(twin), steered)
        assert_same_bits(logits(twin), plain)
    assert_same_bits(logits(twin), plain)
    assert_same_bits(twin.generate(token_ids(), max_new_tokens=3), model.generate(token_ids(), max_new_tokens=3))


@families
def test_functional_and_capture_leave_nothing(family):
    model, plain = kept(family)
    with unchanged(model):
        f = sf.functional(model)
        f(sf.add(everywhere_in(model)), token_ids())
        f(sf.identity, token_ids(), params=dict(model.named_parameters()))
        sf.capture(model, sites_of(model))(token_ids())
        for error in (RuntimeError(), KeyboardInterrupt()):
            broken = raising(vector_at(model, sf.resid_post[1]), error)
            with pytest.raises(type(error)):
                f(broken, token_ids())
            with pytest.raises(type(error)):
                f(broken, token_ids(), params=dict(model.named_parameters()))
            with pytest.raises(type(error)), sf.steer(model, broken):
                sf.capture(model, sites_of(model))(token_ids())
        assert_same_bits(logits(model), plain)


@families
def test_steering_that_does_nothing_is_bitwise_the_baseline(family):
    model, plain = kept(family)
    v = everywhere_in(model)
    rows = sf.rows([sf.add(v), None])
    with torch.no_grad():
        for op in (sf.add(v, 0.0), sf.identity, sf.chain(), sf.add(0 * v), sf.ablate(0 * v), sf.when(False, sf.add(v))):
            with sf.steer(model, op):
                assert_same_bits(logits(model), plain)
            assert_same_bits(sf.functional(model)(op, token_ids()).logits, plain)
        with pytest.warns(sf.SteerWarning, match="selected no token"), sf.steer(model, v, scope=sf.positions(50)):
            assert_same_bits(logits(model), plain)
        with sf.steer(model, rows):
            found = logits(model)
    assert not torch.allclose(found[0], plain[0])
    if family in MOE:
        torch.testing.assert_close(found[1], plain[1])
    else:
        assert_same_bits(found[1], plain[1], "the unsteered row")


def attributes(tokenizer):
    """Everything a tokenizer holds that could be changed, as values that compare."""
    found = {
        name: copy.deepcopy(value)
        for name, value in vars(tokenizer).items()
        if isinstance(value, (str, int, float, bool, list, dict, tuple, set, type(None)))
    }
    for name in ("padding_side", "truncation_side", "special_tokens_map", "all_special_ids", "chat_template"):
        found[f"{name} (property)"] = copy.deepcopy(getattr(tokenizer, name))
    found["attribute names"] = sorted(vars(tokenizer))
    found["length"] = len(tokenizer)
    found["backend"] = tokenizer.backend_tokenizer.to_str()
    return found


def test_pitfall_24_the_real_model_and_its_tokenizer_are_left_as_they_were(demo):
    model, tokenizer = demo
    texts = ["The weather today is", "I feel"]
    before = attributes(tokenizer)
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    v = vector_at(model, sf.resid_post[15], scale=0.5)
    plain = [model.generate(i, max_new_tokens=8, do_sample=False) for i in ids]
    plain_logits = logits(model, ids[0])
    with unchanged(model):
        with sf.steer(model, v, scope=sf.generated):
            steered = [model.generate(i, max_new_tokens=8, do_sample=False) for i in ids]
        f = sf.functional(model)
        f(sf.add(v), ids[0])
        sf.capture(model, [sf.resid_post[3], sf.attn_out[4], sf.head_out[5, 2]])(ids[0])
        with pytest.raises(ZeroDivisionError), sf.steer(model, everywhere_in(model)):
            model.generate(ids[1], max_new_tokens=2, do_sample=False)
            raise ZeroDivisionError
        sf.generate(model, tokenizer, texts, sf.add(v), max_new_tokens=4)
        list(sf.stream(model, tokenizer, texts[0], sf.add(v), max_new_tokens=4))
        sf.mean_difference(model, tokenizer, positive=texts, negative=texts[:1], sites=12, progress=False)
        sf.activations(model, tokenizer, texts, [12])
        assert_same_bits(logits(model, ids[0]), plain_logits)
    assert attributes(tokenizer) == before
    for i, expected in zip(ids, plain, strict=True):
        assert torch.equal(model.generate(i, max_new_tokens=8, do_sample=False), expected)
    assert not all(torch.equal(a, b) for a, b in zip(steered, plain, strict=True))
