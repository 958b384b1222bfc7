"""How texts are decoded: greedy unless asked, lengths and ends from wherever they are said, stop strings."""

import pytest
import torch
from families import build
from steering import vector
from transformers import GenerationConfig
from words import words

import steerfn as sf

pytestmark = pytest.mark.steady

V = vector(sf.resid_post[1], scale=2.0)
PROMPTS = ["a b c d", "e", "f g"]


@pytest.fixture
def sampler():
    """A model whose own generation config samples, as Llama 3 and Qwen ship it."""
    model = build("llama")
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    return model


def greedy(prompt, op=None, **options):
    """transformers' own greedy tokens of one prompt."""
    model = build("llama")
    ids = words()(prompt, return_tensors="pt", return_token_type_ids=False)
    with sf.steer(model, op if op is not None else sf.identity):
        out = model.generate(**ids, pad_token_id=0, do_sample=False, **{"max_new_tokens": 6, **options})
    return tuple(out[0, ids["input_ids"].shape[1] :].tolist())


def texts_of(found):
    """The texts of any result."""
    if isinstance(found, sf.run.Generations):
        return list(found.texts)
    rows = getattr(found, "texts", None) or {"unsteered": found.before, "steered": found.after}
    return sorted(str(text) for row in (rows.values() if isinstance(rows, dict) else rows) for text in row)


VERBS = {
    "generate": lambda m, **o: sf.generate(m, words(), PROMPTS, V, **o),
    "sweep": lambda m, **o: sf.sweep(m, words(), PROMPTS, V, [0, 1], progress=False, **o),
    "compare": lambda m, **o: sf.compare(m, words(), PROMPTS, V, progress=False, **o),
    "compare_vectors": lambda m, **o: sf.compare_vectors(
        m, words(), V, PROMPTS, "length", controls=2, resamples=100, progress=False, **o
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_pitfall_49_decoding_is_greedy_unless_asked_and_the_record_says_which(sampler, verb):
    call = VERBS[verb]
    before = sampler.generation_config.to_dict()
    found = call(sampler, max_new_tokens=6)
    assert texts_of(found) == texts_of(call(build("llama"), max_new_tokens=6))
    asked = call(sampler, max_new_tokens=6, do_sample=True, **({"seed": 1} if verb == "generate" else {}))
    assert texts_of(asked) != texts_of(found)
    record = [each.decoding if verb == "generate" else each.about["decoding"] for each in (found, asked)]
    assert record == ["greedy", "sampled"]
    assert sampler.generation_config.to_dict() == before


def test_pitfall_49_greedy_texts_are_transformers_own(sampler):
    got = sf.generate(sampler, words(), PROMPTS, V, max_new_tokens=6)
    assert got.token_ids == tuple(greedy(prompt, V) for prompt in PROMPTS)
    whole = "".join(sf.stream(sampler, words(), PROMPTS[0], V, max_new_tokens=6))
    assert whole.split() == got.texts[0].split()


def test_a_sampled_sweep_differs_by_its_strengths_alone(sampler):
    """The same random numbers for a prompt under every configuration, without a seed being passed."""
    table = sf.sweep(sampler, words(), PROMPTS, V, [0, 1e-9], do_sample=True, max_new_tokens=8, progress=False)
    assert table.texts[0] == table.texts[1]
    assert table.about["seed"] == 0
    alone = sf.generate(sampler, words(), PROMPTS, seed=[0, 1, 2], do_sample=True, max_new_tokens=8)
    assert table.texts[0] == alone.texts


def test_a_generation_config_that_samples_is_a_request(tiny):
    config = GenerationConfig(do_sample=True, top_k=5)
    by_config = sf.generate(tiny, words(), PROMPTS, seed=1, generation_config=config)
    assert by_config.decoding == "sampled"
    assert by_config.token_ids == sf.generate(tiny, words(), PROMPTS, seed=1, do_sample=True, top_k=5).token_ids


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.0, "top_p": 1.0}, {"top_k": 50}], ids=str)
def test_options_that_ask_for_nothing_are_taken(tiny, options):
    assert sf.generate(tiny, words(), "a b", max_new_tokens=6, **options).token_ids == (greedy("a b"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.7}, "temperature=0.7 changes nothing where tokens are not sampled"),
        ({"top_p": 0.9}, "pass do_sample=True with it (and seed= to repeat the texts), or leave it out."),
        ({"num_return_sequences": 3}, "num_return_sequences=3 of greedy decoding would be copies of one text"),
        ({"max_new_tokens": 3, "max_length": 9}, "max_new_tokens=3 and max_length=9 both limit the length"),
        (
            {"max_new_tokens": 3, "generation_config": GenerationConfig(max_new_tokens=5)},
            "max_new_tokens=3 and generation_config.max_new_tokens=5 contradict each other",
        ),
        (
            {"max_new_tokens": 3, "generation_config": GenerationConfig(max_length=9)},
            "max_new_tokens=3 and generation_config.max_length=9 both limit the length",
        ),
        ({"max_length": 4}, "A prompt has 5 tokens and max_length=4 counts them too, so nothing can be generated"),
        ({"max_length": 0}, "`max_length` must be a positive integer, got 0."),
        ({"generation_config": {"max_new_tokens": 3}}, "generation_config must be a transformers GenerationConfig"),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", [sf.generate, sf.sweep])
def test_what_contradicts_itself_is_refused(tiny, verb, options, message):
    more = {"vector": V, "progress": False} if verb is sf.sweep else {}
    with pytest.raises(sf.DataError) as caught:
        verb(tiny, words(), PROMPTS, **more, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("how", ["keyword", "config"])
def test_max_length_counts_the_prompt_of_each_row(how):
    """Not its padding: every row has what it has alone."""
    model = build("llama")
    given = {"max_length": 7} if how == "keyword" else {"generation_config": GenerationConfig(max_length=7)}
    got = sf.generate(model, words(), PROMPTS, V, **given)
    assert got.token_ids == tuple(greedy(p, V, max_new_tokens=None, max_length=7) for p in PROMPTS)
    assert list(map(len, got.token_ids)) == [2, 5, 4]
    table = sf.sweep(model, words(), PROMPTS, V, [0, 1], progress=False, **given)
    assert table.texts[1] == got.texts


def test_min_length_counts_the_prompt_of_each_row():
    end = greedy("a b c d", max_new_tokens=6)[1]
    options = {"eos_token_id": end, "min_length": 8, "max_new_tokens": 8}
    got = sf.generate(build("llama"), words(), PROMPTS, **options)
    assert got.token_ids == tuple(greedy(p, **options) for p in PROMPTS)


def test_a_generation_config_is_taken_whole(tiny):
    """Its length and its end, in a batch whose other rows go on."""
    whole = greedy("a b c d")
    got = sf.generate(
        tiny, words(), PROMPTS, generation_config=GenerationConfig(eos_token_id=whole[2], max_new_tokens=5)
    )
    assert got.token_ids[0] == whole[: whole.index(whole[2]) + 1]
    assert got.token_ids[1] == greedy("e", eos_token_id=whole[2], max_new_tokens=5)
    assert sf.generate(tiny, words(), "a", generation_config=GenerationConfig(max_new_tokens=3)).token_ids[0] == (
        greedy("a", max_new_tokens=3)
    )


def first_with(tokens, string):
    """Tokens up to the first after which their text contains a string."""
    text = words(names=NAMES).decode
    return next(tokens[: i + 1] for i in range(len(tokens)) if string in text(tokens[: i + 1]))


NAMES = [f"w{i}x" for i in range(96)]


def stopped(model, prompts, tokenizer=None, **options):
    return sf.generate(model, tokenizer or words(names=NAMES), prompts, V, max_new_tokens=8, chat=False, **options)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": [1, 2, 3]}, {"batch_size": 1}], ids=str)
def test_texts_end_with_a_stop_string(tiny, options):
    tokenizer = words(names=NAMES)
    prompts = ["w0x w1x", "w5x", "w7x w8x w9x"]
    whole = stopped(tiny, prompts, **options)
    string = tokenizer.decode([whole.token_ids[0][2]])
    got = stopped(tiny, prompts, stop_strings=[string, "nowhere"], **options)
    assert got.token_ids[0] == first_with(whole.token_ids[0], string)
    assert len(got.token_ids[0]) < 8 and string in got.texts[0]
    for row, uncut in zip(got.token_ids, whole.token_ids, strict=True):
        assert row == uncut[: len(row)] and (len(row) == 8 or string in tokenizer.decode(row))


def test_a_model_that_ships_stop_strings_can_be_used(tiny):
    tokenizer = words(names=NAMES)
    whole = stopped(tiny, "w0x w1x").token_ids[0]
    string = tokenizer.decode([whole[2]])
    tiny.generation_config.stop_strings = [string]
    cut = first_with(whole, string)
    assert stopped(tiny, "w0x w1x").token_ids == (cut,)
    pieces = sf.stream(tiny, tokenizer, "w0x w1x", V, max_new_tokens=8)
    assert "".join(pieces).split() == tokenizer.decode(cut).split()
    table = sf.sweep(tiny, tokenizer, ["w0x w1x"], V, [1], max_new_tokens=8, progress=False)
    assert table.texts == ((tokenizer.decode(cut),),)
    assert stopped(tiny, "w0x w1x", stop_strings=None).token_ids == (whole,)


def test_a_stop_string_of_the_prompt_ends_nothing(tiny):
    got = stopped(tiny, "w0x w1x", stop_strings=["w1x"]).token_ids[0]
    assert got == stopped(tiny, "w0x w1x").token_ids[0]


def test_alpha_is_the_strength_of_a_vector(tiny):
    strong = sf.generate(tiny, words(), PROMPTS, sf.add(V, 3.0), max_new_tokens=6)
    assert sf.generate(tiny, words(), PROMPTS, V, alpha=3.0, max_new_tokens=6).token_ids == strong.token_ids
    assert (
        sf.generate(tiny, words(), PROMPTS, [V, None, V], alpha=3.0, max_new_tokens=6).token_ids[::2]
        == (strong.token_ids[::2])
    )
    pieces = "".join(sf.stream(tiny, words(), PROMPTS[0], V, alpha=3.0, max_new_tokens=6))
    assert pieces.split() == strong.texts[0].split()
    scores = [sf.score(tiny, words(), "a", [" b"], *steering[:1], **steering[1], progress=False).log_probs
              for steering in ((V, {"alpha": 3.0}), (sf.add(V, 3.0), {}))]  # fmt: skip
    assert scores[0] == scores[1]
    for call in (sf.generate, sf.stream):
        with pytest.raises(sf.DataError, match="alpha=2.0 is the strength of a vector, but no vector was passed"):
            call(tiny, words(), "a", alpha=2.0)
    with pytest.raises(sf.SteerError, match="an operator has its strength inside"):
        sf.generate(tiny, words(), "a", sf.add(V), alpha=2.0)


def test_torch_random_state_does_not_matter_to_a_greedy_sweep(sampler):
    tables = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        tables.append(sf.sweep(sampler, words(), PROMPTS, V, [0, 2], max_new_tokens=6, progress=False).texts)
    assert tables[0] == tables[1]
