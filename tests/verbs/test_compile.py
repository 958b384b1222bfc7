"""Compiled models: a model compiled first is steered inside a context, and another vector compiles nothing.

The oracle is the eager model. Backends: inductor where the code it makes is the point, else "eager",
which traces and guards the same way and compiles nothing.
"""

import pytest
import torch
from families import build
from snapshot import assert_same_bits, same_bits, unchanged
from steering import token_ids, vector_at
from tool_words import tool_words
from torch._dynamo.testing import CompileCounterWithBackend

import steerfn as sf

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*", "ignore::UserWarning:torch.*"
    ),
]
OUTSIDE = sf.outside_tool_calls(tool_words(), marks=("l", "i"))
NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """What one test compiled is not there in the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compilations(counter):
    """How often something was compiled; a trace that dynamo gave up to start again leaves an empty graph."""
    return sum(len(graph.graph.nodes) > 0 for graph in counter.graphs)


def run(model, **options):
    with torch.no_grad():
        return model(token_ids(), use_cache=False, **options).logits


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_pitfalls_31_and_35_compile_first_then_steer_ten_times(tiny, backend):
    """Ten vectors and ten alphas in ten contexts: one graph for the baseline and one for all steering."""
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(tiny, backend=counter, fullgraph=True)
    eager, baseline = run(tiny), run(compiled).clone()
    torch.testing.assert_close(baseline, eager, **NEAR)
    with unchanged(tiny):
        for i in range(10):
            with sf.steer(tiny, vector_at(tiny, sf.resid_post[1], seed=i), 0.5 + i):
                found, expected = run(compiled).clone(), run(tiny)
            torch.testing.assert_close(found, expected, **NEAR)
            assert not torch.allclose(found, baseline, **NEAR)
            assert_same_bits(run(compiled), baseline, f"after context {i}")
            assert_same_bits(run(tiny), eager)
    assert compilations(counter) <= 2


def test_pitfall_35_a_context_on_the_compiled_wrapper_is_the_same(tiny):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(tiny, backend=counter, fullgraph=True)
    baseline = run(compiled)
    for i in range(10):
        op = sf.at(sf.generated, sf.add(vector_at(tiny, sf.resid_post[1], seed=i), float(i + 1)))
        with sf.steer(compiled, op):
            found = run(compiled)
        assert_same_bits(found, sf.functional(tiny)(op, token_ids(), use_cache=False).logits.detach())
        assert_same_bits(run(compiled), baseline)
    assert compilations(counter) <= 2


def test_nested_contexts_on_a_compiled_model(tiny):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(tiny, backend=counter, fullgraph=True)
    baseline = run(compiled)
    v, w = vector_at(tiny, sf.resid_post[1]), vector_at(tiny, sf.resid_post[1], seed=1)
    for _ in range(3):
        with sf.steer(tiny, v):
            one = run(compiled)
            with sf.steer(tiny, w):
                assert_same_bits(run(compiled), run(tiny))
                assert not same_bits(run(compiled), one)
            assert_same_bits(run(compiled), one)
        assert_same_bits(run(compiled), baseline)
    assert compilations(counter) <= 3  # none, one and two steerings


def kinds(model):
    """One operator of every kind, as a function of a strength."""
    v, w = vector_at(model, sf.resid_post[1]), vector_at(model, sf.resid_post[1], seed=1)
    inner = vector_at(model, [sf.attn_out[0], sf.mlp_out[1], sf.resid_mid[2], sf.resid_pre[2]], seed=2)
    return {
        "add": lambda a: sf.add(v, a),
        "add by row": lambda a: sf.add(v, torch.tensor([a, -a])),
        "sublayers": lambda a: sf.add(inner, a),
        "head_out": lambda a: sf.add(vector_at(model, [sf.head_out[1, 0], sf.head_out[1, 3]]), a),
        "ablate": lambda a: sf.chain(sf.ablate(v), sf.add(w, a)),
        "project": lambda a: sf.chain(sf.project(v), sf.add(w, a)),
        "clamp": lambda a: sf.clamp(v, a),
        "clamp between": lambda a: sf.clamp(v, min=-a, max=a),
        "rotate": lambda a: sf.rotate(v, a / 10),
        "rotate in a plane": lambda a: sf.rotate(v, a / 10, plane=w),
        "renorm": lambda a: sf.renorm(sf.add(v, a)),
        "prompt": lambda a: sf.at(sf.prompt & ~sf.last_prompt_token, sf.add(v, a)),
        "generated": lambda a: sf.at(sf.generated, sf.add(v, a)),
        "positions": lambda a: sf.at(sf.positions(1, -1) | sf.positions(slice(2, 4)), sf.add(v, a)),
        "outside tool calls": lambda a: sf.at(OUTSIDE & ~sf.prompt | ~OUTSIDE, sf.add(v, a)),
        "when": lambda a: sf.when(sf.projection_above(v, 0.0) & ~sf.cosine_above(w, 0.5), sf.add(v, a)),
        "when read before": lambda a: sf.when(sf.probe(vector_at(model, sf.resid_post[0]), a / 9), sf.add(v, a)),
        "rows": lambda a: sf.rows([sf.add(v, a), None]),
        "rows of several kinds": lambda a: sf.rows([sf.clamp(v, a), sf.at(sf.generated, sf.add(w, a))]),
        "scheduled": lambda a: sf.scheduled(sf.add(v, a), [1.0, 0.5]),
        "scheduled by a function": lambda a: sf.scheduled(sf.add(v, a), half),
    }


def half(index):
    return 0.5**index


@pytest.mark.parametrize("kind", kinds(build("llama")))
def test_pitfall_35_the_compiled_pure_view_is_eager_for_every_kind(tiny, kind):
    counter = CompileCounterWithBackend("eager")
    f, make = sf.functional(tiny), kinds(tiny)[kind]
    compiled = torch.compile(f, backend=counter, fullgraph=True)
    mask = torch.ones_like(token_ids())
    mask[0, :2] = 0
    plain = run(tiny, attention_mask=mask)
    with torch.no_grad():
        for i in range(10 if kind in ("add", "clamp", "rows", "scheduled") else 3):
            op = make(float(i + 1))
            found = compiled(op, token_ids(), attention_mask=mask, use_cache=False).logits
            expected = f(op, token_ids(), attention_mask=mask, use_cache=False).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(found, plain, rtol=1e-4, atol=1e-4)
            # Nor does an operator compile anything that knows its sites by now.
            assert_same_bits(compiled(op, token_ids(), attention_mask=mask, use_cache=False).logits, found)
    assert compilations(counter) == 1


@pytest.mark.parametrize(
    "kind", ["add", "generated", "when", "when read before", "rows", "sublayers", "outside tool calls"]
)
def test_a_compiled_model_is_steered_by_every_kind_of_context(tiny, kind):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(tiny, backend=counter, fullgraph=True)
    baseline = run(compiled)
    for i in range(4):
        op = kinds(tiny)[kind](float(i + 1))
        with sf.steer(tiny, op):
            found, expected = run(compiled), run(tiny)
        torch.testing.assert_close(found, expected, **NEAR)
        assert not torch.allclose(found, baseline, **NEAR)
    assert_same_bits(run(compiled), baseline)
    assert compilations(counter) <= 2


def test_the_pure_view_compiles_with_inductor(tiny):
    counter = CompileCounterWithBackend("inductor")
    f, v = sf.functional(tiny), vector_at(tiny, sf.resid_post[1])
    compiled = torch.compile(f, backend=counter, fullgraph=True)
    with torch.no_grad():
        for i in range(10):
            found = compiled(sf.add(v, float(i)), token_ids(), use_cache=False).logits
            torch.testing.assert_close(found, f(sf.add(v, float(i)), token_ids(), use_cache=False).logits, **NEAR)
    assert compilations(counter) == 1


def test_a_compiled_function_of_alpha_has_gradients(tiny):
    f, v, ids = sf.functional(tiny), vector_at(tiny, sf.resid_post[1]), token_ids()

    def loss(alpha):
        return f(sf.add(v, alpha), ids, use_cache=False).logits.square().mean()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    one, two = torch.tensor(0.7, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    loss(one).backward()
    compiled(two).backward()
    assert one.grad is not None and two.grad is not None and one.grad != 0
    torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-5)


def by_model(model):
    model.compile(backend="eager")


def by_block(model):
    for block in model.model.layers:
        block.compile(backend="eager")


def by_replaced_block(model):
    for i, block in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(block, backend="eager")


def by_sublayer(model):
    for block in model.model.layers:
        block.mlp.compile(backend="eager")


@pytest.mark.parametrize("compile_it", [by_model, by_block, by_replaced_block, by_sublayer])
def test_pitfall_31_other_ways_to_compile(tiny, compile_it):
    v = vector_at(tiny, [sf.resid_post[1], sf.attn_out[1], sf.mlp_out[2], sf.resid_pre[0]])
    with torch.no_grad():
        expected = sf.functional(build("llama"))(sf.add(v, 2.0), token_ids(), use_cache=False).logits
        acts = sf.capture(build("llama"), v.sites)(token_ids(), use_cache=False)[1]
    compile_it(tiny)
    baseline = run(tiny)
    for _ in range(2):
        with unchanged(tiny), sf.steer(tiny, v, 2.0):
            torch.testing.assert_close(run(tiny), expected, **NEAR)
        assert_same_bits(run(tiny), baseline)
    with torch.no_grad():
        pure = sf.functional(tiny)(sf.add(v, 2.0), token_ids(), use_cache=False).logits
        found = sf.capture(tiny, v.sites)(token_ids(), use_cache=False)[1]
    torch.testing.assert_close(pure, expected, **NEAR)
    for site in v.sites:
        torch.testing.assert_close(found[site], acts[site], **NEAR)
    assert_same_bits(run(tiny), baseline)


def test_generate_with_a_compiled_forward_is_steered_in_scope(tiny):
    op = sf.at(sf.generated, sf.add(vector_at(tiny, sf.resid_post[1], scale=2.0)))
    options = {"max_new_tokens": 5, "do_sample": False}
    plain = tiny.generate(token_ids(), **options)
    with sf.steer(tiny, op):
        expected = tiny.generate(token_ids(), **options)
    assert not torch.equal(plain, expected)
    tiny.forward = torch.compile(tiny.forward, backend="eager")
    assert torch.equal(tiny.generate(token_ids(), **options), plain)
    with unchanged(tiny), sf.steer(tiny, op):
        assert torch.equal(tiny.generate(token_ids(), **options), expected)
    assert torch.equal(tiny.generate(token_ids(), **options), plain)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_pitfall_31_other_families(family):
    model = build(family)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    baseline = run(compiled)
    for i in range(3):
        with sf.steer(model, vector_at(model, sf.resid_post[1], seed=i), 2.0 + i):
            torch.testing.assert_close(run(compiled), run(model), **NEAR)
        assert_same_bits(run(compiled), baseline)
    assert compilations(counter) <= 2


def test_the_compiled_pure_view_honours_the_prompt_length(tiny):
    """As the eager one, for one graph whatever the length; so does a context on a compiled model."""
    counter = CompileCounterWithBackend("eager")
    f, op = sf.functional(tiny), sf.at(sf.generated, sf.add(vector_at(tiny, sf.resid_post[1])))
    view, model = (torch.compile(each, backend=counter, fullgraph=True) for each in (f, tiny))
    found = []
    with torch.no_grad():
        for length in (3, torch.tensor([2, 5])):
            expected = f(op, token_ids(), prompt_length=length, use_cache=False).logits
            for given in (length, torch.as_tensor(length)):
                got = view(op, token_ids(), prompt_length=given, use_cache=False).logits
                torch.testing.assert_close(got, expected, **NEAR)
            with sf.steer(tiny, op, prompt_length=length):
                torch.testing.assert_close(run(model), expected, **NEAR)
            found.append(expected)
        assert not torch.allclose(found[0], found[1], **NEAR)


def wrong(model):
    """Operators that do not fit, and what is said of them."""
    head = sf.SteeringVector({sf.head_out[1, 9]: torch.ones(8)})
    other = sf.SteeringVector({sf.resid_post[1]: torch.ones(32)}, {"model": {"name": "other", "fingerprint": "0" * 16}})
    return {
        "head": (sf.add(head), r"head_out\[1, 9\] is out of range"),
        "layer": (sf.ablate(sf.SteeringVector({sf.resid_post[7]: torch.ones(32)})), r"resid_post\[7\] is out of range"),
        "width": (
            sf.add(sf.SteeringVector({sf.resid_post[1]: torch.ones(33)})),
            r"The direction at resid_post\[1\] has (width 33|another width than 32)",
        ),
        "strict": (sf.add(other), "made from 'other'"),
        "rows": (sf.add(vector_at(model, sf.resid_post[1]), torch.ones(5)), "There are 5 strengths"),
    }


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("kind", wrong(build("llama")))
def test_the_compiled_pure_view_refuses_what_the_eager_one_refuses(tiny, kind, fullgraph):
    """With `fullgraph` the sentence comes in torch's own error. Good calls before and after are steered."""
    f, good = sf.functional(tiny), sf.add(vector_at(tiny, sf.resid_post[1]))
    compiled = torch.compile(f, backend="eager", fullgraph=fullgraph)
    op, message = wrong(tiny)[kind]
    options = {"use_cache": False}
    with torch.no_grad():
        expected = f(good, token_ids(), **options).logits
        for _ in range(2):
            torch.testing.assert_close(compiled(good, token_ids(), **options).logits, expected, **NEAR)
            kinds = torch._dynamo.exc.Unsupported if fullgraph else sf.SteerError
            with pytest.raises(kinds, match=message):
                compiled(op, token_ids(), strict=kind == "strict", **options)
        torch.testing.assert_close(compiled(good, token_ids(), **options).logits, expected, **NEAR)


def test_a_graph_that_breaks_is_steered_all_the_same(tiny):
    """The pure view then runs eagerly as a whole, a context in parts."""

    def breaking(index):
        torch._dynamo.graph_break()
        return 0.5**index

    op = sf.scheduled(sf.add(vector_at(tiny, sf.resid_post[1])), breaking)
    f = sf.functional(tiny)
    with torch.no_grad():
        expected = f(op, token_ids(), use_cache=False).logits
        compiled = torch.compile(f, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(op, token_ids(), use_cache=False).logits, expected, **NEAR)
        model = torch.compile(tiny, backend="eager")
        baseline = run(model)
        for _ in range(2):
            with sf.steer(tiny, op):
                torch.testing.assert_close(run(model), expected, **NEAR)
            assert_same_bits(run(model), baseline)


def test_a_compiled_model_whose_pass_fails_is_steered_in_the_next(tiny):
    op = sf.add(vector_at(tiny, sf.resid_post[1]))
    compiled = torch.compile(tiny, backend="eager")
    with torch.no_grad():
        baseline = run(compiled)
        for bad in (sf.add(vector_at(tiny, sf.resid_post[1]), torch.ones(5)),):
            with pytest.raises(sf.ShapeError, match="There are 5 strengths"), sf.steer(tiny, bad):
                run(compiled)
            assert_same_bits(run(compiled), baseline)
            with sf.steer(tiny, op):
                torch.testing.assert_close(run(compiled), run(tiny), **NEAR)
                assert not torch.allclose(run(compiled), baseline)


def test_pitfall_43_the_compiled_pure_view_sees_a_model_that_changes(tiny):
    """Blocks replaced and added, training: compiled anew then, and only then."""
    counter = CompileCounterWithBackend("eager")
    f, op = sf.functional(tiny), sf.add(vector_at(tiny, sf.resid_post[1]))
    compiled = torch.compile(f, backend=counter, fullgraph=True)

    def check(graphs):
        with torch.no_grad():
            found = compiled(op, token_ids(), use_cache=False).logits
            with sf.steer(tiny, op):
                torch.testing.assert_close(found, run(tiny), **NEAR)
        assert compilations(counter) == graphs
        return found

    before = check(1)
    check(1)
    for i in range(3):  # a context on the model itself compiles it anew at most once
        with torch.no_grad(), sf.steer(tiny, op, alpha=None):
            assert_same_bits(compiled(op, token_ids(), use_cache=False).logits, before)
        seen = compilations(counter)
        assert seen <= 2, i
    tiny.model.layers[2] = build("llama").model.layers[0]
    assert not torch.allclose(check(seen + 1), before)
    tiny.model.layers.append(build("llama").model.layers[1])
    check(seen + 2)
    check(seen + 2)


def test_a_compiled_pure_view_warns_of_a_site_that_it_does_not_meet():
    model = build("mllama")
    v = sf.add(sf.SteeringVector({sf.resid_post[1]: torch.ones(32)}))
    compiled = torch.compile(sf.functional(model), backend="eager", fullgraph=True)
    with torch.no_grad(), pytest.warns(sf.SteerWarning, match=r"No forward pass met resid_post\[1\]"):
        compiled(v, token_ids(), use_cache=False)
