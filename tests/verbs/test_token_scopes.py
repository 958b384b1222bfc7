"""Steering outside tool calls through a model: with a cache and without, however passes are cut, and never guessed."""

import contextlib
import copy
import warnings

import hypothesis.strategies as st
import pytest
import torch
import transformers
from families import build
from greedy import padded
from hypothesis import given, settings
from snapshot import assert_same_bits, unchanged
from steering import token_ids, vector
from tool_words import CLOSE, END, OPEN, tool_words
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StaticCache

import steerfn as sf

OLD = transformers.__version__.startswith("4.")
MODEL = build("llama")
SCOPE = sf.outside_tool_calls(tool_words())
V, W = vector(sf.resid_post[1], scale=3.0), vector(sf.resid_post[0], seed=4, scale=3.0)
OP = sf.at(SCOPE, sf.add(V + W))
UNKNOWN = "^The scope outside_tool_calls is a function of all token ids of a row, and here some of them are not known. "


def outside(tokens):
    """Token by token: a token is a call's if it is inside one before it, or after it."""
    inside, result = False, []
    for token in tokens:
        before = inside
        inside = token == OPEN or (inside and token not in (CLOSE, END))
        result.append(not (before or inside))
    return result


class Asked(sf.Operator):
    """Changes nothing, and notes what the scope selects."""

    sites = (sf.resid_post[1], sf.resid_post[2])

    def __init__(self, scope=SCOPE):
        self.scope, self.masks = scope, []

    def bind(self, site, device=None):
        def note(hidden, info):
            mask = self.scope.mask(info.tokens)
            if site.layer == 1:
                self.masks.append(mask)
            return hidden

        return note


class Writes(LogitsProcessor):
    """What comes after a token is forced by it where it is a multiple of 4, or one more: calls open and close."""

    def __call__(self, input_ids, scores):
        last = input_ids[:, -1:] % 4
        scores = scores.clone()
        scores[:, [OPEN, CLOSE, END]] = -torch.inf
        forced = torch.where(last == 0, OPEN, CLOSE)
        only = torch.full_like(scores, -torch.inf).scatter(1, forced, 0.0)
        return torch.where(last < 2, only, scores)


WRITES = LogitsProcessorList([Writes()])


def generate(model, ids, op=OP, n=9, **options):
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": n, **options}
    with contextlib.nullcontext() if op is None else sf.steer(model, op):
        return model.generate(ids, logits_processor=WRITES, **options)[:, ids.shape[1] :]


def by_hand(model, ids, op=OP, n=9):
    """The same without a cache over the pure view."""
    f, start = sf.functional(model), ids.shape[1]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)
        for _ in range(n):
            scores = f(op, ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, Writes()(ids, scores).argmax(-1, keepdim=True)], 1)
    return ids[:, start:]


PROMPTS = torch.tensor([[3, OPEN, 5, 6, CLOSE, 7], [4, 5, 6, 9, OPEN, 10], [8, 9, 11, 13, 14, 15]])

ROWS = st.lists(st.sampled_from([3, 4, OPEN, CLOSE, END]), min_size=1, max_size=9)


@settings(max_examples=25)
@given(data=st.data(), rows=st.lists(ROWS, min_size=1, max_size=3), side=st.sampled_from(["left", "right"]))
def test_passes_of_any_length_select_what_a_walk_over_the_row_does(data, rows, side):
    """In batches, padded, with one cache or without any."""
    ids, mask = padded([torch.tensor([row]) for row in rows], side)
    width = ids.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, width), max_size=4)) | {width})
    cache = data.draw(st.sampled_from([None, DynamicCache, lambda: StaticCache(MODEL.config, max_cache_len=width)]))
    asked = Asked()
    with torch.no_grad(), sf.steer(MODEL, asked):
        if cache is None:
            MODEL(ids, attention_mask=mask, use_cache=False)
        else:
            held = cache()
            for start, end in zip([0, *cuts], cuts, strict=False):
                MODEL(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=held)
    found = torch.cat(asked.masks, 1)
    for row, selected, real in zip(rows, found, mask.bool(), strict=True):
        assert selected[real].tolist() == outside(row)


def test_inside_a_call_logits_are_bit_for_bit_the_unsteered_ones_given_the_same_cache():
    """From the opening mark to the closing one, both included; before and after they are steered."""
    script = [6, OPEN, 7, 8, 9, CLOSE, 10, OPEN, 11]
    prompt, tokens = token_ids(1, 5), torch.tensor([script])

    class Script(LogitsProcessor):
        def __call__(self, input_ids, scores):
            only = torch.full_like(scores, -torch.inf)
            only[:, script[input_ids.shape[1] - 5]] = 0.0
            return only

    with sf.steer(MODEL, OP):
        out = MODEL.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False, output_logits=True,
            return_dict_in_generate=True, logits_processor=LogitsProcessorList([Script()]),
        )  # fmt: skip
    assert out.sequences[0, 5:].tolist() == script
    with torch.no_grad(), unchanged(MODEL):
        with sf.steer(MODEL, OP):
            step = MODEL(prompt, logits_to_keep=1)
            steps, caches = [step.logits[:, -1]], []
            for i in range(8):
                caches.append(copy.deepcopy(step.past_key_values))
                step = MODEL(tokens[:, i : i + 1], past_key_values=step.past_key_values)
                steps.append(step.logits[:, -1])
        for i, (found, by_hand) in enumerate(zip(out.logits, steps, strict=True)):
            assert_same_bits(found, by_hand)
            if i:
                unsteered = MODEL(tokens[:, i - 1 : i], past_key_values=caches[i - 1]).logits[:, -1]
                assert torch.equal(found, unsteered) != outside(script)[i - 1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
    ],
    ids=str,
)
def test_generation_is_as_without_a_cache(options):
    found = generate(MODEL, PROMPTS, **options)
    assert torch.equal(found, by_hand(MODEL, PROMPTS))
    assert not torch.equal(found, generate(MODEL, PROMPTS, None))
    assert not torch.equal(found, generate(MODEL, PROMPTS, sf.add(V + W)))


def test_padded_rows_are_as_alone():
    rows = [PROMPTS[:1, :3], PROMPTS[1:2], PROMPTS[2:, :1], torch.tensor([[12, OPEN]])]
    ids, mask = padded(rows, "left")
    expected = torch.cat([by_hand(MODEL, row) for row in rows])
    assert torch.equal(generate(MODEL, ids, attention_mask=mask), expected)
    ids[:, 0][mask[:, 0] == 0] = OPEN  # whatever pads with
    assert torch.equal(generate(MODEL, ids, attention_mask=mask), expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_beams_take_their_tokens_with_them(options):
    found, expected = (generate(MODEL, PROMPTS, n=12, use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(found, expected) and not torch.equal(found, generate(MODEL, PROMPTS, None, 12, **options))


def test_sequences_of_one_prompt_diverge():
    found = []
    for cached in (True, False):
        torch.manual_seed(0)
        found.append(generate(MODEL, PROMPTS, use_cache=cached, do_sample=True, num_return_sequences=3))
    assert torch.equal(*found) and len(set(map(tuple, found[0].tolist()))) > 3


@pytest.mark.parametrize("way", ["prompt lookup", "assistant", "itself as assistant", "early exit"])
def test_assisted_decoding_gives_the_steered_tokens(way):
    options = {
        "prompt lookup": {"prompt_lookup_num_tokens": 2, "eos_token_id": 98, "pad_token_id": 0},
        "assistant": {"assistant_model": build("llama")},
        "itself as assistant": {"assistant_model": MODEL},
        "early exit": {"assistant_early_exit": 1},
    }[way]
    for row in PROMPTS:
        assert torch.equal(generate(MODEL, row[None], **options), by_hand(MODEL, row[None]))


@pytest.mark.parametrize("cached", [True, False])
def test_the_branch_of_guidance_has_rows_of_its_own(cached):
    """Its ids are those of the negative prompt and of what is generated."""
    negative, asked = torch.tensor([[5, OPEN]]), Asked()
    ids = PROMPTS[2:]
    new = generate(MODEL, ids, asked, guidance_scale=2.0, negative_prompt_ids=negative, use_cache=cached)
    for start, masks in ((ids, asked.masks[::2]), (negative, asked.masks[1::2])):
        row = [*start[0].tolist(), *new[0, :-1].tolist()]
        assert (torch.cat(masks, 1)[0].tolist() if cached else masks[-1][0].tolist()) == outside(row)
    assert any(asked.masks[0][0].tolist()) and len(asked.masks) == 18


def test_a_second_turn_in_the_cache():
    """With all ids they are known; a cache goes on where it was left."""
    with sf.steer(MODEL, OP):
        options = {"do_sample": False, "logits_processor": WRITES, "return_dict_in_generate": True}
        first = MODEL.generate(PROMPTS, attention_mask=torch.ones_like(PROMPTS), max_new_tokens=4, **options)
        more = torch.cat([first.sequences, PROMPTS], 1)
        mask = torch.ones_like(more)
        options["past_key_values"] = first.past_key_values
        again = MODEL.generate(more, attention_mask=mask, max_new_tokens=5, **options)
    assert torch.equal(again.sequences, generate_all(more, 5))


def generate_all(ids, n):
    return torch.cat([ids, by_hand(MODEL, ids, n=n)], 1)


def test_a_family_without_keys():
    """A recurrent cache is followed by generate, and by no one else."""
    model = build("mamba")
    op = sf.at(SCOPE, sf.add(vector(sf.resid_post[1], scale=3.0)))
    found = generate(model, PROMPTS, op)
    assert torch.equal(found, generate(model, PROMPTS, op, use_cache=False))
    assert not torch.equal(found, generate(model, PROMPTS, None))


def test_threads_that_stream():
    tokenizer, model = tool_words(), MODEL
    options = {"max_new_tokens": 9, "logits_processor": WRITES}
    for row in PROMPTS.tolist():
        text = "".join(sf.stream(model, tokenizer, row, OP, chat=False, **options))
        assert text == sf.generate(model, tokenizer, row, OP, chat=False, **options)[0]


def test_the_pure_view_is_the_context():
    f = sf.functional(MODEL)
    with torch.no_grad(), sf.steer(MODEL, OP):
        inside = MODEL(PROMPTS).logits
        cache = DynamicCache()
        f(OP, PROMPTS[:, :2], past_key_values=cache)
        again = MODEL(PROMPTS[:, 2:], past_key_values=cache).logits  # what a cache holds is known, whoever filled it
    assert_same_bits(f(OP, PROMPTS).logits.detach(), inside)
    assert torch.allclose(again, inside[:, 2:], atol=1e-5)


def test_gradients_through_checkpoints():
    model, ids = build("llama"), PROMPTS
    model.train()
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
            getattr(model, f"{name}_checkpointing_enable")()  # transformers 5, 4
        alpha = torch.tensor(1.0, requires_grad=True)
        with sf.steer(model, sf.at(SCOPE, sf.add(V + W, alpha))):
            model(ids, use_cache=False).logits.square().mean().backward()
        found.append(alpha.grad)
    assert_same_bits(*found)


def test_an_unknown_beginning_is_refused():
    with torch.no_grad():
        filled = MODEL(PROMPTS).past_key_values
        with sf.steer(MODEL, OP):
            with pytest.raises(sf.SteerError, match=UNKNOWN):
                MODEL(PROMPTS[:, :1], past_key_values=filled)
            with pytest.raises(sf.SteerError, match=UNKNOWN):
                MODEL(inputs_embeds=MODEL.get_input_embeddings()(PROMPTS))
            with pytest.raises(sf.SteerError, match=UNKNOWN):
                embedded = MODEL.get_input_embeddings()(PROMPTS)
                MODEL.generate(inputs_embeds=embedded, max_new_tokens=2, do_sample=False)
            for change in (
                lambda cache: cache.reorder_cache(torch.tensor([1, 0, 2])),
                lambda cache: cache.crop(-3),
                lambda cache: cache.layers[0].keys.mul_(1.0),
                lambda cache: cache.update(*[torch.zeros(3, 2, 1, 8)] * 2, 0),
            ):
                cache = MODEL(PROMPTS).past_key_values
                change(cache)
                with pytest.raises(sf.SteerError, match=UNKNOWN):
                    MODEL(PROMPTS[:, :1], past_key_values=cache)
            if not OLD:  # which takes no ids that are shorter than the cache
                mask = torch.ones(3, 8, dtype=torch.long)
                new = {"past_key_values": copy.deepcopy(filled), "attention_mask": mask, "max_new_tokens": 2}
                with pytest.raises(sf.SteerError, match=UNKNOWN):
                    MODEL.generate(PROMPTS[:, :2], do_sample=False, **new)
        with sf.steer(MODEL, OP, on_error="baseline") as steering:
            MODEL(inputs_embeds=MODEL.get_input_embeddings()(PROMPTS))
        assert steering.fallbacks == 2


def test_removal_is_exact():
    model = build("llama")
    with torch.no_grad(), unchanged(model):
        before = model(PROMPTS).logits
        generate(model, PROMPTS)
        with pytest.raises(sf.SteerError), sf.steer(model, OP):
            model(inputs_embeds=model.get_input_embeddings()(PROMPTS))
        assert_same_bits(model(PROMPTS).logits, before)


def test_a_scope_that_selects_nothing_is_the_baseline_and_warns():
    ids = torch.tensor([[OPEN, 4, 5]])
    with pytest.warns(sf.SteerWarning, match="^The scope outside_tool_calls selected no token"):
        with torch.no_grad(), sf.steer(MODEL, OP):
            found = MODEL(ids).logits
    assert_same_bits(found, MODEL(ids).logits.detach())
