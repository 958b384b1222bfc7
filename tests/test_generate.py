"""Generation: against transformers' own `generate`, row by row; streaming from threads."""

import threading

import pytest
import torch
from families import build
from steering import vector
from words import words

import steerfn as sf

PROMPTS = ["a b c d", "e", "f g"]


def plain(model, tokenizer, prompt, op=None, **hf):
    """The new tokens of one unpadded prompt."""
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    import contextlib

    with sf.steer(model, op) if op is not None else contextlib.nullcontext():
        out = model.generate(**ids, max_new_tokens=6, pad_token_id=0, **hf)
    return tuple(out[0, ids["input_ids"].shape[1] :].tolist())


def test_pitfall_02_rows_equal_prompts_alone(tiny):
    tokenizer, op = words(), sf.add(vector(sf.resid_post[1]), 2.0)
    got = sf.generate(tiny, tokenizer, PROMPTS, op, max_new_tokens=6)
    assert got.token_ids == tuple(plain(tiny, tokenizer, p, op) for p in PROMPTS)
    assert len(got) == 3 and got[0] == got.texts[0] and list(got) == list(got.texts)


def test_one_operator_for_each_prompt(tiny):
    tokenizer = words()
    ops = [None, sf.add(vector(sf.resid_post[1]), 3.0), vector(sf.resid_post[0], seed=2)]
    got = sf.generate(tiny, tokenizer, PROMPTS, ops, max_new_tokens=6, batch_size=2)
    assert got.token_ids == tuple(plain(tiny, tokenizer, p, o) for p, o in zip(PROMPTS, ops, strict=True))


def test_a_seed_repeats_a_sample_and_leaves_torchs_random_state(tiny):
    before = torch.get_rng_state()
    first, second, other = (
        sf.generate(tiny, words(), PROMPTS, max_new_tokens=8, do_sample=True, seed=s).token_ids for s in (1, 1, 2)
    )
    assert first == second != other
    assert torch.equal(torch.get_rng_state(), before)


def test_the_template_is_applied_where_there_is_one(tiny):
    made = sf.generate(tiny, words(template=True), "a b", max_new_tokens=2)
    assert made.prompt_token_ids == ((1, 29, 3, 4, 30),)
    assert sf.generate(tiny, words(template=True), "a b", chat=False, max_new_tokens=2).prompt_token_ids == ((1, 3, 4),)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert sf.generate(tiny, words(template=True), talk, max_new_tokens=2).prompt_token_ids == ((1, 29, 3, 30, 4),)


def test_texts_end_at_the_end_of_text(tiny):
    tokenizer = words()
    whole = sf.generate(tiny, tokenizer, "a b c", max_new_tokens=8).token_ids[0]
    end = whole[2]
    cut = sf.generate(tiny, tokenizer, ["a b c", "d"], max_new_tokens=8, eos_token_id=end).token_ids[0]
    assert cut == whole[: whole.index(end) + 1]


def test_pitfall_24_nothing_of_the_users_changes(tiny):
    tokenizer = words(pad=False)
    config, generation = tiny.config.to_dict(), tiny.generation_config.to_dict()
    sf.generate(tiny, tokenizer, PROMPTS, vector(sf.resid_post[1]), max_new_tokens=3)
    list(sf.stream(tiny, tokenizer, "a", vector(sf.resid_post[1]), max_new_tokens=3))
    assert tokenizer.pad_token_id is None and tokenizer.padding_side == "right"
    assert (tiny.config.to_dict(), tiny.generation_config.to_dict()) == (config, generation)


def test_several_sequences_a_prompt(tiny):
    got = sf.generate(
        tiny,
        words(),
        PROMPTS,
        [vector(sf.resid_post[1]), None, None],
        num_return_sequences=2,
        num_beams=2,
        max_new_tokens=4,
    )
    assert len(got) == 6
    assert got.token_ids[2] == sf.generate(tiny, words(), "e", num_beams=2, max_new_tokens=4).token_ids[0]
    assert "e\n  ->" in str(got)


OPS = [sf.at(sf.generated, sf.add(vector(sf.resid_post[1]), 9.0)), None, sf.ablate(vector(sf.resid_post[0], seed=2))]


def test_beams_of_a_prompt_share_its_operator(tiny):
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4}
    got = sf.generate(tiny, words(), PROMPTS, OPS, **options)
    for i, (prompt, op) in enumerate(zip(PROMPTS, OPS, strict=True)):
        assert got.token_ids[2 * i : 2 * i + 2] == sf.generate(tiny, words(), prompt, op, **options).token_ids


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2}, {}], ids=str)
def test_sampled_rows_depend_on_their_own_operator_only(tiny, options):
    """Under one seed and one shape the random numbers of a row are the same, whatever steers the others."""

    def sampled(ops):
        return sf.generate(tiny, words(), PROMPTS, ops, max_new_tokens=4, do_sample=True, seed=3, **options).token_ids

    n = options.get("num_return_sequences", 1)
    mixed, unsteered = sampled(OPS), sampled(None)
    assert mixed[n : 2 * n] == unsteered[n : 2 * n] and mixed[:n] != unsteered[:n]
    for i in (0, 2):
        assert mixed[n * i : n * (i + 1)] == sampled(OPS[i])[n * i : n * (i + 1)]


@pytest.mark.parametrize("assisted", ["assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"])
def test_assisted_decoding_with_an_operator_for_each_prompt(tiny, assisted):
    """Speculation checks every token against the steered model: the tokens are those of greedy decoding."""
    value = {"assistant_model": build("llama"), "prompt_lookup_num_tokens": 2, "assistant_early_exit": 1}[assisted]
    plainly = sf.generate(tiny, words(), PROMPTS, OPS, max_new_tokens=6, eos_token_id=98)
    got = sf.generate(tiny, words(), PROMPTS, OPS, max_new_tokens=6, eos_token_id=98, **{assisted: value})
    assert got.token_ids == plainly.token_ids
    assert got.token_ids != sf.generate(tiny, words(), PROMPTS, max_new_tokens=6, eos_token_id=98).token_ids


def test_a_stream_takes_one_seed(tiny):
    with pytest.raises(sf.DataError, match=r"^A seed is an int from .* not \[1\]\.$"):
        sf.stream(tiny, words(), "a", seed=[1])


def test_a_stream_gives_the_text_of_generate(tiny):
    op = sf.add(vector(sf.resid_post[1]), 2.0)
    want = sf.generate(tiny, words(), "a b c", op, max_new_tokens=8).texts[0]
    assert "".join(sf.stream(tiny, words(), "a b c", op, max_new_tokens=8)).split() == want.split()
    read = []
    thread = threading.Thread(
        target=lambda: read.append("".join(sf.stream(tiny, words(), "a b c", op, max_new_tokens=8)))
    )
    thread.start()
    thread.join()
    assert read[0].split() == want.split()


def test_a_stream_inside_a_context_is_steered_by_it(tiny):
    v = vector(sf.resid_post[1], scale=3.0)
    want = sf.generate(tiny, words(), "a b c", v, max_new_tokens=8).texts[0]
    with sf.steer(tiny, v):
        got = "".join(sf.stream(tiny, words(), "a b c", max_new_tokens=8))
    assert got.split() == want.split()


def test_closing_a_stream_ends_its_thread_and_restores_the_model(tiny):
    ids = torch.tensor([[1, 3, 4]])
    with torch.no_grad():
        before = tiny(ids).logits
        pieces = sf.stream(tiny, words(), "a b", vector(sf.resid_post[1]), max_new_tokens=100)
        next(pieces)
        pieces.close()
        assert not [t for t in threading.enumerate() if t.name == "steerfn-stream"]
        assert torch.equal(tiny(ids).logits, before)


def test_errors_of_a_stream_are_raised_where_it_is_read(tiny):
    pieces = sf.stream(tiny, words(), "a", sf.add(vector(sf.resid_post[9])))
    with pytest.raises(sf.SiteError, match="out of range"):
        next(pieces)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts is empty; pass at least one text."),
        ({"op": [None]}, "There are 3 prompts but 1 operators; pass one for each"),
        ({"op": "happy"}, "steer takes a SteeringVector or an operator, not a str"),
        ({"batch_size": 0}, "batch_size is a number of prompts from 1, not 0."),
        ({"max_new_tokens": 0}, "max_new_tokens is a number of tokens from 1, not 0."),
        ({"seed": "x"}, "A seed is an int from -2**63 to 2**64 - 1, not 'x'."),
        ({"seed": 2**64}, "A seed is an int from -2**63 to 2**64 - 1, not 18446744073709551616."),
        ({"seed": [1, 2.0, 3]}, "A seed is an int from -2**63 to 2**64 - 1, not 2.0."),
        ({"seed": [1, 2]}, "There are 3 prompts but 2 seeds; pass one for each, or a single one."),
        (
            {"seed": [1, 2, 3], "custom_generate": print},
            "seed=[...] does not reach the sampling of custom_generate; pass one int as the seed.",
        ),
    ],
)
def test_errors_by_their_text(tiny, arguments, message):
    with pytest.raises(sf.SteerError) as caught:
        sf.generate(tiny, words(), **({"prompts": PROMPTS} | arguments))
    assert message in str(caught.value)
