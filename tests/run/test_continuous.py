"""Rows that join and leave between passes: each gets what it gets alone, whoever runs beside it."""

import random

import pytest
import torch
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st
from served import tokenizer

import steerfn as sf
from steerfn.run import BatchJob, ContinuousBatch, RowSampling, decoding_of, run_batch

transformers = pytest.importorskip("transformers", minversion="5.23", reason="continuous batching as it is here")
pytestmark = pytest.mark.steady

FAMILIES = ("llama", "gpt2", "gpt_neox", "mistral", "qwen3", "gemma3_text", "phi")


def decoding(model):
    return decoding_of("test", model, tokenizer(), {})


def operators(model):
    """Steering of every kind that a server applies."""
    size, generator = model.config.get_text_config().hidden_size, torch.Generator().manual_seed(5)

    def v(*sites):
        return sf.SteeringVector({site: torch.randn(size, generator=generator) for site in sites})

    one, other = v(sf.resid_post[1], sf.resid_pre[0]), v(sf.resid_post[0], sf.attn_out[1], sf.mlp_out[0])
    calls = sf.outside_tool_calls(tokenizer(), marks=("a", "b"))
    return [
        None,
        sf.add(one, 3.0),
        sf.add(one, -1.5),
        sf.ablate(one),
        sf.at(sf.generated, sf.add(other, 4.0)),
        sf.at(sf.prompt, sf.add(other, 4.0)),
        sf.at(calls, sf.add(one, 4.0)),
        sf.chain(sf.add(other, 1.0), sf.at(sf.generated, sf.ablate(one))),
        sf.rotate(one, 0.7),
        sf.at(sf.positions(1, 2), sf.clamp(one, 2.0)),
    ]


SAMPLINGS = (
    RowSampling(),
    RowSampling(temperature=1.0, seed=3),
    RowSampling(temperature=0.8, top_p=0.9, seed=4, presence_penalty=0.5, logit_bias={5: 2.0}),
)


def jobs_of(model, shapes):
    """(prompt length, tokens, operator, sampling) of each row."""
    ops, r = operators(model), random.Random(0)
    return [
        BatchJob([r.randrange(3, 20) for _ in range(n)], ops[op], most, SAMPLINGS[how], (), lambda _: None)
        for n, most, op, how in shapes
    ]


def run_joining(batch, jobs, joins):
    """Run jobs that join when `joins` says: that many before each pass, and then the rest."""
    left, joins = list(jobs), list(joins)
    while left or batch.jobs:
        for _ in range(joins.pop(0) if joins else len(left)):
            if left:
                batch.add(left.pop(0))
        batch.step()


SHAPES = st.lists(
    st.tuples(st.sampled_from([1, 2, 5, 19]), st.integers(1, 6), st.integers(0, 9), st.integers(0, 2)),
    min_size=1,
    max_size=9,
)


@pytest.fixture(scope="module")
def llama():
    model = build("llama")
    return model, ContinuousBatch(model, tokenizer(), decoding(model), 4, 256)


@settings(max_examples=15, deadline=None)
@given(shapes=SHAPES, joins=st.lists(st.integers(0, 3), max_size=8))
def test_law_a_row_gets_what_it_gets_alone_whenever_it_joins(llama, shapes, joins):
    model, batch = llama
    alone, own = jobs_of(model, shapes), jobs_of(model, shapes)
    for job in alone:
        run_batch(model, tokenizer(), [job], decoding(model))
    run_joining(batch, own, joins)
    assert [job.tokens for job in own] == [job.tokens for job in alone]
    assert [job.reason for job in own] == [job.reason for job in alone]


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    model = build(family)
    shapes = [(n, 4, op, op % 3) for op, n in enumerate([1, 7, 3, 19, 2, 5, 11, 4, 6, 9])]
    alone, own = jobs_of(model, shapes), jobs_of(model, shapes)
    for job in alone:
        run_batch(model, tokenizer(), [job], decoding(model))
    before = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    run_joining(ContinuousBatch(model, tokenizer(), decoding(model), 4, 256), own, [1, 0, 2])
    assert [job.tokens for job in own] == [job.tokens for job in alone]
    assert torch.equal(model(input_ids=torch.tensor([[3, 4, 5]])).logits, before), "the model is as it was"


def test_a_prompt_in_parts_and_a_cache_that_is_too_small_change_nothing(monkeypatch):
    from steerfn.run import _continuous

    monkeypatch.setattr(_continuous, "PASS", 16)  # tokens of one pass
    model = build("llama")
    shapes = [(n, 40, op, 0) for op, n in zip((1, 5, 4, 6, 0), (40, 33, 20, 1, 17), strict=True)]
    alone, own = jobs_of(model, shapes), jobs_of(model, shapes)
    for job in alone:
        run_batch(model, tokenizer(), [job], decoding(model))
    batch = ContinuousBatch(model, tokenizer(), decoding(model), 8, 160)  # two rows to their end, or a little more
    begun = []
    batch._processor.offloading_manager.offload_requests = _counted(
        batch._processor.offloading_manager.offload_requests, begun
    )
    run_joining(batch, own, [])
    assert begun, "the cache was large enough, and this says nothing"
    assert [job.tokens for job in own] == [job.tokens for job in alone]


def _counted(method, calls):
    return lambda *given, **named: (calls.append(1), method(*given, **named))[1]


def test_log_probabilities_structure_and_ends_are_each_rows_own(llama):
    model, batch = llama

    def jobs():
        said = []
        echo = BatchJob([3, 4, 5], None, 0, RowSampling(), (), said.append, top_logprobs=2, of_prompt=True)
        told = BatchJob([6, 7], operators(model)[1], 3, RowSampling(), (), said.append, top_logprobs=2)
        return [echo, told], said

    (alone, _), (own, said) = jobs(), jobs()
    for job in alone:
        run_batch(model, tokenizer(), [job], decoding(model))
    run_joining(batch, own, [])
    assert own[0].prompt_logprobs == alone[0].prompt_logprobs and own[0].reason == "length" and not own[0].tokens
    assert [each.token for each in own[1].logprobs] == own[1].tokens
    for one, other in zip(own[1].logprobs, alone[1].logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert said.count(None) == 2, "each text ends once"


def test_who_leaves_is_gone_at_the_next_pass_and_the_others_go_on(llama):
    model, batch = llama
    shapes = [(3, 8, 1, 0), (4, 8, 2, 0), (5, 8, 0, 0)]
    alone, own = jobs_of(model, shapes), jobs_of(model, shapes)
    for job in alone:
        run_batch(model, tokenizer(), [job], decoding(model))
    for job in own:
        batch.add(job)
    batch.step()
    own[1].cancel()
    while batch.jobs:
        assert own[1] not in batch.step()
    assert own[1].reason == "cancelled" and len(own[1].tokens) == 1
    assert [own[0].tokens, own[2].tokens] == [alone[0].tokens, alone[2].tokens]


@pytest.mark.filterwarnings("ignore:Steering made the hidden state")
def test_a_row_whose_numbers_are_not_finite_fails_alone():
    model = build("llama").half()
    v = sf.SteeringVector({sf.resid_post[1]: torch.ones(model.config.hidden_size)})
    shapes = [(3, 4, 0, 0), (5, 4, 2, 0)]
    alone, own = jobs_of(model, shapes), jobs_of(model, shapes)
    run_batch(model, tokenizer(), alone[1:], decoding(model))
    own[0].op = sf.chain(sf.add(v, 6e4), sf.add(v, 6e4))
    run_joining(ContinuousBatch(model, tokenizer(), decoding(model), 4, 256), own, [])
    assert own[0].reason == "error" and "smaller alpha" in str(own[0].error)
    assert (own[1].reason, own[1].tokens) == ("length", alone[1].tokens)


@pytest.mark.parametrize("spoil", ["eager", "compiled", "recurrent"])
def test_what_cannot_is_refused_at_the_start_and_left_as_it_was(spoil):
    model = build("mamba" if spoil == "recurrent" else "llama")
    if spoil == "eager":
        model.set_attn_implementation("eager")
    if spoil == "compiled":
        model.compile(backend="eager")
    implementation = model.config._attn_implementation
    with pytest.raises(sf.SteerError, match="cannot be batched continuously"):
        ContinuousBatch(model, tokenizer(), decoding(model), 4, 256)
    assert model.config._attn_implementation == implementation
