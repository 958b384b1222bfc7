"""Generation: against transformers' own `generate`, row by row; streaming from threads."""

import threading

import numpy as np
import pytest
import torch
from families import build
from steering import vector
from words import words

import steerfn as sf

pytestmark = pytest.mark.steady

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
    with pytest.raises(sf.DataError, match=r"^`seed` must be an integer from .* got \[1\]\.$"):
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
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0."),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a positive integer, got 0."),
        ({"seed": "x"}, "`seed` must be an integer from -9223372036854775808 to 18446744073709551615, got 'x'."),
        (
            {"seed": 2**64},
            "`seed` must be an integer from -9223372036854775808 to 18446744073709551615, got 18446744073709551616.",
        ),
        (
            {"seed": [1, 2.0, 3]},
            "`seed[1]` must be an integer from -9223372036854775808 to 18446744073709551615, got 2.0.",
        ),
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


ALPHAS = torch.linspace(-4, 4, 5)
MANY = ["a b c d", "e", "f g", "h i j", "k l"]


def by_strength():
    """Operators that hold a value for each prompt, and the operator that is meant for prompt `i`."""
    v, w = vector(sf.resid_post[1]), vector(sf.resid_post[0], seed=2)
    return {
        "add": (sf.add(v, ALPHAS), lambda i: sf.add(v, ALPHAS[i])),
        "clamp": (sf.clamp(v, min=ALPHAS, max=ALPHAS + 1), lambda i: sf.clamp(v, min=ALPHAS[i], max=ALPHAS[i] + 1)),
        "rotate": (sf.rotate(v, ALPHAS), lambda i: sf.rotate(v, ALPHAS[i])),
        "nested": (
            sf.at(sf.generated, sf.chain(sf.ablate(w), sf.add(v, ALPHAS))),
            lambda i: sf.at(sf.generated, sf.chain(sf.ablate(w), sf.add(v, ALPHAS[i]))),
        ),
        "rows": (
            sf.rows([sf.add(v, 3.0), None, sf.add(w), sf.add(v, 3.0), sf.ablate(v)]),
            lambda i: [sf.add(v, 3.0), sf.identity, sf.add(w), sf.add(v, 3.0), sf.ablate(v)][i],
        ),
    }


@pytest.mark.parametrize("name", by_strength())
def test_a_strength_for_each_prompt_stays_with_it_in_every_batch(tiny, name):
    op, meant = by_strength()[name]
    expected = tuple(plain(tiny, words(), p, meant(i)) for i, p in enumerate(MANY))
    assert len(set(expected)) > 2
    for size in (1, 2, 5, 16):
        assert sf.generate(tiny, words(), MANY, op, max_new_tokens=6, batch_size=size).token_ids == expected
    twice = sf.generate(tiny, words(), MANY, op, max_new_tokens=6, batch_size=2, num_beams=2, num_return_sequences=2)
    alone = [
        sf.generate(tiny, words(), p, meant(i), max_new_tokens=6, num_beams=2, num_return_sequences=2).token_ids
        for i, p in enumerate(MANY)
    ]
    assert twice.token_ids == sum(alone, ())


def test_strengths_for_another_number_of_prompts_are_refused(tiny):
    v, w = vector(sf.resid_post[1]), words()
    for op in (sf.add(v, ALPHAS[:2]), sf.rows([sf.add(v), None])):
        with pytest.raises(sf.DataError, match="^There are 4 prompts, but the operator holds one .* of 2 rows;"):
            sf.generate(tiny, w, MANY[:4], op, batch_size=2)
        for run in (
            lambda op=op: sf.score(tiny, w, MANY[:2], ["a"], op, progress=False),
            lambda op=op: sf.sweep(tiny, w, MANY[:2], v, [1.0], make=lambda v, a: op, progress=False),
            lambda op=op: sf.compare(tiny, w, MANY[:2], op, ["length"], progress=False),
        ):
            with pytest.raises(sf.DataError, match="holds one strength or operator for each of 2 rows"):
                run()
    with pytest.raises(sf.ShapeError, match=r"holds strengths or operators for \[2, 3\] rows"):
        sf.generate(tiny, w, MANY, sf.chain(sf.add(v, ALPHAS[:2]), sf.add(v, ALPHAS[:3])))


def test_a_context_with_a_value_for_each_row_is_not_batched(tiny):
    v, w = vector(sf.resid_post[1]), words()
    expected = sf.generate(tiny, w, MANY, sf.add(v, ALPHAS), max_new_tokens=6).token_ids
    with sf.steer(tiny, v, alpha=ALPHAS):
        assert sf.generate(tiny, w, MANY, max_new_tokens=6).token_ids == expected
        assert sf.generate(build("llama"), w, MANY, max_new_tokens=6, batch_size=2)  # another model's context
        for run in (
            lambda: sf.generate(tiny, w, MANY, batch_size=3),
            lambda: sf.activations(tiny, w, MANY, 1, progress=False),
            lambda: sf.score(tiny, w, MANY, ["a"], progress=False),
            lambda: sf.sweep(tiny, w, MANY, v, [1.0], progress=False),
        ):
            with pytest.raises(sf.DataError, match="^An open steering context holds a value for each row"):
                run()
    with sf.steer(tiny, v, prompt_length=[1, 2]), pytest.raises(sf.DataError, match="holds a value for each row"):
        sf.activations(tiny, w, MANY[:2], 1, progress=False)


def test_a_pad_token_that_the_model_cannot_embed_is_not_used(tiny):
    tokenizer = words()
    expected = sf.generate(tiny, tokenizer, PROMPTS, max_new_tokens=6).token_ids
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens([f"<{i}>" for i in range(99)])
    tokenizer.add_special_tokens({"pad_token": "<98>"})
    assert tokenizer.pad_token_id >= tiny.config.vocab_size
    assert sf.generate(tiny, tokenizer, PROMPTS, max_new_tokens=6).token_ids == expected
    assert "".join(sf.stream(tiny, tokenizer, PROMPTS[0], max_new_tokens=6))


def test_counts_and_seeds_of_numpy(tiny):
    given = {"max_new_tokens": 4, "do_sample": True, "batch_size": 2}
    expected = sf.generate(tiny, words(), PROMPTS, seed=[3, 4, 5], **given).token_ids
    numpy = {"max_new_tokens": np.int64(4), "do_sample": np.True_, "batch_size": np.int32(2)}
    assert sf.generate(tiny, words(), PROMPTS, seed=np.arange(3, 6), **numpy).token_ids == expected
    assert sf.generate(tiny, words(), "a", seed=np.int64(7), **numpy).texts
