"""Generation with a static cache and a compiled forward: steered, and compiled once for every alpha and vector."""

import pytest
import torch
from families import build
from snapshot import unchanged
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
"""In both rows of `token_ids` something opens, in one of them it closes before the prompt ends."""
STATIC = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """What one test compiled is not there in the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operators(model, i):
    """The `i`-th operator of every kind: another vector and another strength, the structure the same."""
    v, w = (vector_at(model, sf.resid_post[1], seed=2 * i + j, scale=2.0) for j in (0, 1))
    alpha = 1.0 + i / 4
    return {
        "add": sf.add(v, alpha),
        "generated": sf.at(sf.generated, sf.add(v, alpha)),
        "every block": sf.add(vector_at(model, [sf.resid_post[n] for n in range(3)], seed=i), alpha),
        "ablate": sf.ablate(v),
        "schedule": sf.scheduled(sf.add(v, 3 * alpha), [1.0, 0.5, 0.0, 1.0]),
        "gate": sf.when(sf.projection_above(v, 0.0), sf.add(w, alpha)),
        "rows": sf.rows([sf.add(v, alpha), sf.at(sf.generated, sf.add(w, -alpha))]),
        "outside tool calls": sf.at(OUTSIDE, sf.add(v, alpha)),
    }


KINDS = list(operators(build("llama"), 0))
QUICK = ("generated", "schedule", "rows", "outside tool calls")


def generated(model, op=None):
    if op is None:
        return model.generate(token_ids(), **STATIC)
    with sf.steer(model, op):
        return model.generate(token_ids(), **STATIC)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_pitfall_35_static_cache_decoding_compiles_once_for_every_operator_of_a_kind(tiny, kind):
    expected = [generated(tiny, operators(tiny, i)[kind]) for i in range(4)]
    plain = generated(tiny)
    assert any(not torch.equal(each, plain) for each in expected)
    counter = CompileCounterWithBackend("eager")
    tiny.forward = torch.compile(tiny.forward, backend=counter, fullgraph=True, dynamic=False)
    assert torch.equal(generated(tiny), plain)
    unsteered = counter.frame_count  # one graph for the prompt, one for a token
    counts = []
    with unchanged(tiny):
        for i in range(4):
            assert torch.equal(generated(tiny, operators(tiny, i)[kind]), expected[i]), f"{kind} {i}"
            counts.append(counter.frame_count - unsteered)
        assert torch.equal(generated(tiny), plain)
    assert counts == [counts[0]] * 4, "another alpha or vector compiled something"
    assert counts[0] <= unsteered


def test_static_cache_decoding_with_inductor(tiny):
    """The code that inductor makes, rather than the graph it is given."""
    ops = [operators(tiny, i)["generated"] for i in range(3)]
    expected = [generated(tiny, op) for op in ops]
    tiny.forward = torch.compile(tiny.forward, fullgraph=True, dynamic=False)
    assert [torch.equal(generated(tiny, op), e) for op, e in zip(ops, expected, strict=True)] == [True] * 3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_pure_view_adds_no_graph_break(family):
    """As many breaks as the model has by itself: none where it has none."""
    model = build(family)
    f, op = sf.functional(model), sf.at(sf.generated, sf.add(vector_at(model, sf.resid_post[1])))
    with torch.no_grad():
        alone = torch._dynamo.explain(model)(token_ids(), use_cache=False)
        torch._dynamo.reset()
        steered = torch._dynamo.explain(f)(op, token_ids(), use_cache=False)
    assert steered.graph_break_count == alone.graph_break_count
    assert steered.graph_count == alone.graph_count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
def test_cuda_graphs_replay_the_operator_of_the_call():
    model = build("llama").cuda()
    ids = token_ids().cuda()

    def run(op=None):
        if op is None:
            return model.generate(ids, **STATIC)
        with sf.steer(model, op):
            return model.generate(ids, **STATIC)

    ops = [operators(model, i)["generated"] for i in range(3)]
    expected, plain = [run(op) for op in ops], run()
    model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    assert torch.equal(run(), plain)
    for op, each in zip(ops, expected, strict=True):
        assert torch.equal(run(op), each)
    assert torch.equal(run(), plain)
