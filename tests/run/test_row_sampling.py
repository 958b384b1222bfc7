"""How each row of a batch chooses its tokens, and the log-probabilities that it tells."""

import dataclasses
import math

import pytest
import torch
from families import build
from hypothesis import given
from hypothesis import strategies as st
from steering import vector_at
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from words import words

import steerfn as sf
from steerfn.run import BatchJob, RowSampling, decoding_of, run_batch
from steerfn.run._logprobs import token_logprobs
from steerfn.run._row_sampling import truncate

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [5, 5, 5, 13]]


@pytest.fixture(scope="module")
def model():
    return build("llama")


def run(model, *rows, ends=frozenset()):
    """Jobs of (prompt, keywords), run as one batch."""
    tokenizer = words()
    decoding = dataclasses.replace(decoding_of("test", model, tokenizer, {}), ends=ends)
    jobs = []
    for prompt, more in rows:
        job = {"op": None, "max_tokens": 8, "sampling": RowSampling(), "stops": (), "on_text": lambda _: None} | more
        jobs.append(BatchJob(list(prompt), **job))
    run_batch(model, tokenizer, jobs, decoding)
    return jobs


def logits_by_hand(model, ids, op=None):
    with torch.no_grad():
        given = {"input_ids": torch.tensor([ids])}
        return (sf.functional(model)(op, **given) if op is not None else model(**given)).logits[0]


@given(st.integers(0, 30), st.floats(0.05, 1.0), st.floats(0.0, 0.5), st.integers(0, 2**31))
def test_what_is_left_to_sample_from_is_what_transformers_leaves(top_k, top_p, min_p, seed):
    scores = 3 * torch.randn(2, 50, generator=torch.Generator().manual_seed(seed))
    one = torch.ones(2, 1)
    mine = truncate(scores, top_p * one, (top_k * one).long(), min_p * one)
    warpers = LogitsProcessorList()
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    ids = torch.zeros(2, 1, dtype=torch.long)
    theirs = warpers(ids, scores)
    # Where a sum of probabilities is the share to the last bit, rounding decides about one token.
    assert ((mine == -torch.inf) != (theirs == -torch.inf)).sum() <= 1
    assert bool((mine.argmax(-1) == scores.argmax(-1)).all())


def test_each_row_is_what_it_is_alone_and_its_options_are_its_own(model):
    rows = [
        (PROMPTS[0], {"sampling": RowSampling(temperature=1.0, seed=1)}),
        (PROMPTS[1], {"sampling": RowSampling(temperature=2.0, top_k=3, min_p=0.1, seed=2)}),
        (PROMPTS[2], {"sampling": RowSampling(frequency_penalty=2.0, presence_penalty=1.0)}),
        (PROMPTS[2], {"sampling": RowSampling(repetition_penalty=1.5)}),
        (PROMPTS[1], {"sampling": RowSampling(logit_bias={17: 100.0})}),
        (PROMPTS[0], {}),
    ]
    together = run(model, *rows)
    for job, row in zip(together, rows, strict=True):
        assert job.tokens == run(model, row)[0].tokens
    assert together[4].tokens == [17] * 8
    assert len({tuple(job.tokens) for job in together[2:4]}) == 2


def test_penalties_by_hand(model):
    """Repetition counts prompt and text, as transformers does; presence and frequency the text alone."""
    for name, sampling in {
        "repetition": RowSampling(repetition_penalty=1.3),
        "presence": RowSampling(presence_penalty=1.5),
        "frequency": RowSampling(frequency_penalty=0.7),
    }.items():
        [job] = run(model, (PROMPTS[2], {"sampling": sampling, "max_tokens": 12}))
        ids = list(PROMPTS[2])
        for token in job.tokens:
            logits, text = logits_by_hand(model, ids)[-1], ids[len(PROMPTS[2]) :]
            if name == "repetition":
                logits = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids]), logits[None].clone())[0]
            for seen in set(text):
                logits[seen] -= 1.5 * (name == "presence") + 0.7 * text.count(seen) * (name == "frequency")
            assert token == int(logits.argmax())
            ids.append(token)
        assert name != "presence" or len(set(job.tokens)) > 1


def test_temperature_is_that_of_transformers(model):
    scores = torch.randn(1, 99)
    assert torch.equal(TemperatureLogitsWarper(0.5)(torch.zeros(1, 1), scores), scores / 0.5)
    warm, cold = (
        run(model, *[(PROMPTS[0], {"sampling": RowSampling(temperature=t, seed=s)}) for s in range(12)])
        for t in (5.0, 1e-5)
    )
    assert len({tuple(job.tokens) for job in warm}) > 6 and len({tuple(job.tokens) for job in cold}) == 1


@pytest.mark.parametrize("steered", [False, True])
def test_log_probabilities_are_those_of_a_plain_pass_of_the_steered_model(model, steered):
    op = sf.add(vector_at(model, sf.resid_post[1]), 4.0) if steered else None
    more = {"op": op, "top_logprobs": 3, "of_prompt": True, "sampling": RowSampling(temperature=1.0, seed=4)}
    biased = more | {"sampling": RowSampling(logit_bias={17: 100.0}), "top_logprobs": 1}
    for prompt, job in zip(
        PROMPTS, run(model, *[(PROMPTS[0], more), (PROMPTS[1], biased), (PROMPTS[2], more)]), strict=True
    ):
        expected = logits_by_hand(model, [*prompt, *job.tokens], op).log_softmax(-1)
        told = [*job.prompt_logprobs, *job.logprobs]
        assert [one.token for one in told] == [*prompt[1:], *job.tokens]
        for place, one in enumerate(told):
            assert one.logprob == pytest.approx(float(expected[place, one.token]), abs=1e-4)
            best = expected[place].topk(job.top_logprobs)
            assert [token for token, _ in one.top] == best.indices.tolist()
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_the_prompt_alone_and_nothing_after_the_end(model):
    [job] = run(model, (PROMPTS[0], {"max_tokens": 0, "top_logprobs": 0, "of_prompt": True}))
    assert (job.reason, job.tokens, len(job.prompt_logprobs)) == ("length", [], len(PROMPTS[0]) - 1)
    first = run(model, (PROMPTS[0], {}))[0].tokens[0]
    ended, other = run(
        model, (PROMPTS[0], {"top_logprobs": 0}), (PROMPTS[1], {"sampling": RowSampling(logit_bias={first: -100.0})}),
        ends=frozenset({first}),
    )  # fmt: skip
    assert (ended.reason, ended.tokens, len(ended.logprobs)) == ("stop", [], 1) and len(other.tokens) == 8


def test_what_is_impossible_is_a_number_that_json_knows():
    [one] = token_logprobs(torch.tensor([[0.0, -math.inf]]), torch.tensor([1]), 2)
    assert one.logprob == -9999.0 and one.top == ((0, 0.0), (1, -9999.0))
