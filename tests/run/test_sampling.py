"""A seed for each prompt: against transformers' own distribution, a loop by hand, and rows alone."""

import numpy as np
import pytest
import torch
from steering import vector
from transformers import GenerationConfig
from words import words

import steerfn as sf
from steerfn.run._sampling import pick, uniforms

pytestmark = pytest.mark.steady

PROMPTS = ["a b c d", "e", "f g"]
OPS = [None, sf.add(vector(sf.resid_post[1]), 3.0), sf.ablate(vector(sf.resid_post[0], seed=2))]
WARPS = [
    {},
    {"temperature": 0.6},
    {"top_k": 4, "temperature": 1.5},
    {"top_p": 0.5, "top_k": 0},
    {"min_p": 0.4, "repetition_penalty": 1.4},
]


def sampled(model, prompts=PROMPTS, op=None, **options):
    options = {"do_sample": True, "max_new_tokens": 6} | options
    return sf.generate(model, words(), prompts, op, **options).token_ids


def assert_drawn_from(counts, probabilities):
    """Pearson's statistic, within five of its standard deviations; what has no probability is never drawn."""
    counts, probabilities = np.asarray(counts, float), np.asarray(probabilities, float)
    assert not counts[probabilities == 0].any()
    expected = counts.sum() * probabilities / probabilities.sum()
    small = (expected > 0) & (expected < 5)  # taken together
    counts = np.append(counts[expected >= 5], counts[small].sum())
    expected = np.append(expected[expected >= 5], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(counts) - 1
    assert degrees >= 1
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees)


def test_pick_is_the_inverse_of_the_cumulative_probability():
    random = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(200, 11, generator=random)
    scores[torch.rand(200, 11, generator=random) < 0.3] = -torch.inf
    scores[:, 5] = 0.0
    numbers = torch.rand(200, generator=random, dtype=torch.float64)
    numbers[:4] = torch.tensor([0.0, 1 - 2**-53, 0.0, 1 - 2**-53])
    scores[2:4, 0], scores[2:4, -1] = -torch.inf, -torch.inf
    found = pick(scores, numbers)
    for row, number, token in zip(scores, numbers.tolist(), found.tolist(), strict=True):
        p = np.exp(row.double().numpy())
        below = np.cumsum(p / p.sum())
        assert p[token] > 0
        assert (below[token - 1] if token else 0) - 1e-6 <= number <= below[token] + 1e-6


def test_the_numbers_of_a_row():
    """They are torch's for that seed, the same however many are asked for, and others for every seed and copy."""
    first = torch.rand(30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(uniforms(5, 0, 30), first) and torch.equal(uniforms(5, 0, 7), first[:7])
    assert torch.equal(uniforms(5, 3, 7), uniforms(5, 3, 30)[:7])
    streams = [uniforms(seed, copy, 5) for seed in (-1, 0, 1, 2**64 - 2) for copy in range(4)]
    assert len({tuple(s.tolist()) for s in streams}) == len(streams)


def test_numbers_are_uniform_over_seeds_copies_and_steps():
    numbers = torch.stack([uniforms(seed, copy, 3) for seed in range(500) for copy in range(4)])
    for some in (numbers[::4, 0], numbers[3::4, 0], numbers[:, 2], numbers[:40].flatten()):
        assert_drawn_from(torch.histc(some, 10, 0, 1), np.full(10, 0.1))
    close = (numbers[:-1, 0] * 3).long() * 3 + (numbers[1:, 0] * 3).long()  # one copy and the next
    assert_drawn_from(torch.bincount(close, minlength=9), np.full(9, 1 / 9))


@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_first_tokens_are_drawn_from_transformers_own_distribution(tiny, warp):
    ids = words()(PROMPTS[0], return_tensors="pt", return_token_type_ids=False)
    out = tiny.generate(
        **ids,
        do_sample=True,
        max_new_tokens=1,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **warp,
    )
    n = 1500
    drawn = sampled(tiny, [PROMPTS[0]] * n, max_new_tokens=1, batch_size=500, seed=range(n), **warp)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=99)
    assert_drawn_from(counts, out.scores[0].softmax(-1)[0])


def test_tokens_are_those_of_a_loop_by_hand(tiny):
    """No cache, no batch, no transformers: softmax of the warped logits, cumulated, and torch's random numbers."""
    got = sampled(tiny, op=OPS, seed=[11, 12, 13], temperature=0.8, top_k=0)
    f = sf.functional(tiny)
    for prompt, op, seed, tokens in zip(PROMPTS, OPS, (11, 12, 13), got, strict=True):
        ids = words()(prompt, return_tensors="pt")["input_ids"]
        random = torch.Generator().manual_seed(seed)
        for token in tokens:
            with torch.no_grad():
                logits = f(op or sf.identity, ids, use_cache=False).logits[0, -1].double() / 0.8
            number = torch.rand((), generator=random, dtype=torch.float64)
            assert token == int((logits.softmax(-1).cumsum(-1) > number).nonzero()[0])
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


def test_a_rows_text_depends_on_its_own_seed_only(tiny):
    together = sampled(tiny, op=OPS, seed=[7, 8, 9])
    assert together == sampled(tiny, op=OPS, seed=[7, 8, 9], batch_size=2)
    for i in range(3):
        assert together[i : i + 1] == sampled(tiny, PROMPTS[i], OPS[i], seed=[7 + i])
    turned = sampled(tiny, PROMPTS[::-1], OPS[::-1], seed=[9, 8, 7])
    assert turned == together[::-1]
    other = sampled(tiny, op=OPS, seed=[7, 0, 9])
    assert other[1] != together[1] and other[::2] == together[::2]
    assert len(set(sampled(tiny, ["a"] * 8, seed=range(8)))) == 8
    assert len(set(sampled(tiny, ["a"] * 8, seed=[4] * 8))) == 1


def test_each_sequence_of_a_prompt_has_its_own_numbers(tiny):
    three = sampled(tiny, op=OPS, seed=[7, 8, 9], num_return_sequences=3)
    assert len(three) == 9 and len(set(three)) == 9
    assert three[::3] == sampled(tiny, op=OPS, seed=[7, 8, 9])
    assert three[3:6] == sampled(tiny, PROMPTS[1], OPS[1], seed=[8], num_return_sequences=3)
    assert three[:2] == sampled(tiny, PROMPTS[0], OPS[0], seed=[7], num_return_sequences=2)


def test_more_tokens_go_on_from_the_same_ones(tiny):
    longer = sampled(tiny, seed=[1, 2, 3], max_new_tokens=9)
    assert tuple(row[:4] for row in longer) == sampled(tiny, seed=[1, 2, 3], max_new_tokens=4)


def test_what_the_generation_config_says_holds(tiny):
    tiny.generation_config = GenerationConfig(do_sample=True, top_k=2, temperature=0.7, pad_token_id=0)
    before, state = tiny.generation_config.to_dict(), torch.get_rng_state()
    by_config = sf.generate(tiny, words(), PROMPTS, seed=[1, 2, 3], max_new_tokens=6, do_sample=True).token_ids
    assert tiny.generation_config.to_dict() == before and torch.equal(torch.get_rng_state(), state)
    tiny.generation_config = GenerationConfig(pad_token_id=0)
    assert by_config == sampled(tiny, seed=[1, 2, 3], top_k=2, temperature=0.7)
    assert by_config != sampled(tiny, seed=[1, 2, 3], temperature=0.7)
    greedy = sampled(tiny, seed=[1, 2, 3], do_sample=False)
    assert greedy == sampled(tiny, do_sample=False)


def test_the_users_processors_and_ends_hold(tiny):
    def only_even(ids, scores):
        return scores.masked_fill(torch.arange(99) % 2 == 1, -torch.inf)

    got = sampled(tiny, seed=[1, 2, 3], logits_processor=[only_even], max_new_tokens=20)
    assert not any(token % 2 for row in got for token in row)
    end = got[0][4]
    cut = sampled(tiny, seed=[1, 2, 3], logits_processor=[only_even], max_new_tokens=20, eos_token_id=end)
    assert cut[0] == got[0][: got[0].index(end) + 1]


def test_one_seed_is_torchs(tiny):
    ids = words()(PROMPTS[0], return_tensors="pt", return_token_type_ids=False)
    torch.manual_seed(5)
    plain = tiny.generate(**ids, do_sample=True, max_new_tokens=6, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
    assert sampled(tiny, PROMPTS[0], seed=5) == (tuple(plain.tolist()),)


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"num_beams": 2}, "beam sample"),
        ({"num_beams": 2, "do_sample": False}, "beam search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
        ({"assistant_early_exit": 1}, "assisted generation"),
        ({"assistant_model": None}, "assisted generation"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "contrastive search"),
    ],
)
def test_ways_that_pick_no_token_a_row_are_refused(tiny, options, way):
    if "assistant_model" in options:
        options = {"assistant_model": tiny}
    text = (
        f"seed=[...] gives every prompt random numbers of its own, which {way} cannot use; pass one int as the seed, "
        "or sample without beams, assistant and prompt lookup."
    )
    with pytest.raises(sf.DataError) as caught:
        sampled(tiny, seed=[1, 2, 3], **options)
    assert str(caught.value) == text
