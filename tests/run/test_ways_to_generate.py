"""Every way to generate inside a context is steered right or refused; unsteered rows of a batch stay what they are."""

import threading
import warnings

import hypothesis.strategies as st
import pytest
import torch
from families import build
from hypothesis import HealthCheck, given, settings
from snapshot import assert_same_bits
from steering import token_ids, vector

import steerfn as sf

V, W = vector(sf.resid_post[1], scale=3.0), vector(sf.resid_post[0], seed=4, scale=3.0)
OPS = {
    "everywhere": sf.add(V),
    "generated": sf.at(sf.generated, sf.add(W)),
    "prompt": sf.at(sf.prompt, sf.add(W)),
    "position": sf.at(sf.positions(6), sf.add(W)),
    "scheduled": sf.scheduled(sf.add(W), [1.0, 0.0, 0.5]),
    "decided on the prompt": sf.at(sf.generated, sf.when(sf.on_prompt(sf.projection_above(W, -99.0)), sf.add(V))),
}
ops = pytest.mark.parametrize("op", OPS)


def by_hand(model, op, ids, n=6):
    """Greedy decoding without a cache over the pure view."""
    f, length = sf.functional(model), ids.shape[1]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        for _ in range(n):
            out = f(op, ids, prompt_length=length, use_cache=False)
            ids = torch.cat([ids, out.logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


def steered(model, op, ids, **options):
    with sf.steer(model, op):
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, **options)


@ops
@pytest.mark.parametrize("way", ["prompt lookup", "assistant", "itself as assistant", "early exit"])
def test_assisted_decoding_gives_the_steered_tokens(tiny, op, way):
    options = {
        "prompt lookup": {"prompt_lookup_num_tokens": 2, "eos_token_id": 98, "pad_token_id": 0},
        "assistant": {"assistant_model": build("llama")},
        "itself as assistant": {"assistant_model": tiny},
        "early exit": {"assistant_early_exit": 1},
    }[way]
    ids = token_ids(1, 5)
    assert torch.equal(steered(tiny, OPS[op], ids, **options), by_hand(tiny, OPS[op], ids))


def uncached(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """A decoding loop of a user's own."""
    while True:
        logits = model(input_ids=input_ids, use_cache=False).logits[:, -1]
        input_ids = torch.cat([input_ids, logits.argmax(-1, keepdim=True)], 1)
        if bool(stopping_criteria(input_ids, None).all()):
            return input_ids


@ops
def test_a_decoding_loop_of_the_users_own_is_steered(tiny, op):
    ids = token_ids(2, 5)
    assert torch.equal(steered(tiny, OPS[op], ids, custom_generate=uncached), by_hand(tiny, OPS[op], ids))


@pytest.mark.parametrize(
    "options",
    [
        {"dola_layers": "low"},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"force_words_ids": [[5]], "num_beams": 2},
        {"cache_implementation": "paged"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ways_that_transformers_has_moved_out_are_refused(tiny, options):
    with pytest.raises(ValueError, match="requires `trust_remote_code=True`|paged|continuous batching"):
        steered(tiny, V, token_ids(1, 5), **options)


CONTINUOUS = [name for name in dir(build("llama")) if name in ("generate_batch", "init_continuous_batching")]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_batching_is_refused_inside_a_context(tiny, name):
    with sf.steer(tiny, V), pytest.raises(sf.SteerError) as caught:
        getattr(tiny, name)([[3, 4, 5]])
    assert str(caught.value) == (
        f"model.{name} (continuous batching) packs prompts into one row and runs in a thread of its own, where no "
        "steering reaches it; use model.generate or sf.generate inside the context, or call it outside."
    )
    assert name not in tiny.__dict__


def test_continuous_batching_of_other_threads_is_theirs(tiny):
    tiny.generate_batch = lambda inputs: ("ran", inputs)
    found = []
    with sf.steer(tiny, V):
        thread = threading.Thread(target=lambda: found.append(tiny.generate_batch([[1]])))
        thread.start()
        thread.join()
    assert found == [("ran", [[1]])] == [tiny.generate_batch([[1]])]


def test_continuous_batching_falls_back_where_asked_to(tiny, caplog):
    tiny.generate_batch = lambda inputs: ("ran", inputs)
    with sf.steer(tiny, V, on_error="baseline") as steering:
        assert tiny.generate_batch([[1]]) == ("ran", [[1]])
    assert steering.fallbacks == 1 and "steering was left out (fallback 1): model.generate_batch" in caplog.text


# -- unsteered rows ------------------------------------------------------------------------------

MODEL = build("llama")
SITES = (sf.resid_pre[0], sf.resid_mid[1], sf.attn_out[0], sf.mlp_out[1], sf.resid_post[1], sf.resid_post[2])
SCOPES = (sf.everywhere, sf.prompt, sf.generated, sf.positions(0, -1), sf.positions(7), ~sf.last_prompt_token)


@st.composite
def single(draw, depth=2):
    """An operator for one row, nested to a depth."""
    v = vector(draw(st.sampled_from(SITES)), seed=draw(st.integers(0, 3)), scale=2.0)
    number = draw(st.sampled_from([0.0, 1.0, -2.0]))
    kind = draw(st.sampled_from(["plain"] if depth == 0 else ["plain", "at", "when", "scheduled", "renorm", "chain"]))
    if kind == "plain":
        makers = [lambda: sf.add(v, number), lambda: sf.ablate(v), lambda: sf.project(v), lambda: sf.clamp(v, number)]
        return draw(st.sampled_from([*makers, lambda: sf.rotate(v, number)]))()
    inner = draw(single(depth - 1))
    condition = sf.projection_above(vector(sf.resid_pre[0], seed=9), number)
    return {
        "at": lambda: sf.at(draw(st.sampled_from(SCOPES)), inner),
        "when": lambda: sf.when(sf.on_prompt(condition) if draw(st.booleans()) else condition, inner),
        "scheduled": lambda: sf.scheduled(inner, [1.0, number]),
        "renorm": lambda: sf.renorm(inner),
        "chain": lambda: sf.chain(inner, draw(single(depth - 1))),
    }[kind]()


@st.composite
def mixes(draw):
    """Operators and None for four rows, some of them shared."""
    known = draw(st.lists(single(), min_size=1, max_size=3))
    some = draw(st.lists(st.none() | st.sampled_from(known), min_size=3, max_size=3))
    some.insert(draw(st.integers(0, 3)), None)
    return some


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=list(HealthCheck))
@given(ops=mixes(), padded=st.booleans(), copies=st.sampled_from([1, 2]))
def test_unsteered_rows_of_any_mix_are_bitwise_what_they_are_unsteered(ops, padded, copies):
    ids, mask = token_ids(4, 6), torch.ones(4, 6, dtype=torch.long)
    if padded:
        for row, pads in enumerate((2, 0, 3, 1)):
            mask[row, :pads] = 0
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    if copies > 1:
        options |= {"do_sample": True, "num_return_sequences": copies}

    def run():
        torch.manual_seed(0)
        out = MODEL.generate(ids, attention_mask=mask, pad_token_id=0, **options)
        with torch.no_grad():
            return MODEL(ids, attention_mask=mask).logits, out.sequences, torch.stack(out.logits, 1)

    unsteered = run()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        with sf.steer(MODEL, sf.rows(ops)):
            mixed = run()
            rows = torch.tensor([op is None for op in ops])
            several = rows.repeat_interleave(copies)
            for a, b, which in zip(mixed, unsteered, (rows, several, several), strict=True):
                assert_same_bits(a[which], b[which])
        for i, op in enumerate(ops):
            if op is not None and not padded:
                with sf.steer(MODEL, op), torch.no_grad():
                    alone = MODEL(ids[i : i + 1], attention_mask=mask[i : i + 1]).logits
                torch.testing.assert_close(mixed[0][i : i + 1], alone, rtol=1e-3, atol=1e-3)
