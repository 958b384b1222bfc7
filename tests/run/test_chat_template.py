"""Text as people have it: chats that are rendered already, answers that were begun, switches, token ids."""

import pytest
import torch
from families import build
from steering import vector
from words import words

import steerfn as sf

V = vector(sf.resid_post[1], scale=2.0)
CLOSED = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} z {% endfor %}"
    "{% if tools %}t {% endif %}"
    "{% if add_generation_prompt %}assistant {% if enable_thinking is defined and not enable_thinking %}n {% endif %}"
    "{% endif %}"
)
"""A template that closes every message with a z, and reads `enable_thinking` and `tools`."""
ASK = [{"role": "user", "content": "a b"}]
BEGUN = [*ASK, {"role": "assistant", "content": "c d"}]


@pytest.fixture
def tokenizer():
    made = words()
    made.chat_template = CLOSED
    return made


def prompt(tokenizer, text, **options):
    """What the model reads, as words."""
    found = sf.generate(build("llama"), tokenizer, [text], max_new_tokens=1, **options).prompt_token_ids[0]
    return tokenizer.decode(found)


RENDERED = "<bos> user a b z assistant"


@pytest.mark.parametrize("strip", [False, True])
def test_pitfall_23_a_rendered_chat_is_taken_as_it_is(tokenizer, strip):
    """With one BOS, whether or not its own was stripped, and not put into the template again."""
    text = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sf.generate(build("llama"), tokenizer, text, max_new_tokens=1).prompt_token_ids == (tuple(expected),)
    assert prompt(tokenizer, text) == prompt(tokenizer, text, chat=False) == prompt(tokenizer, ASK) == RENDERED
    assert sf.run.token_read(tokenizer, [text], "mean", chat=False) == [RENDERED]
    assert sf.run.token_read(tokenizer, [text], "mean", chat=None) == [RENDERED]
    with pytest.raises(sf.DataError, match="laid out for the model already"):
        prompt(tokenizer, text, chat=True)


def test_a_rendered_chat_without_its_bos_gets_it_back():
    tokenizer = words()
    tokenizer.chat_template = CLOSED.replace("{{ m['role'] }} ", "[{{ m['role'] }}] ")
    text = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert prompt(tokenizer, text.removeprefix("<bos>")) == prompt(tokenizer, text) == prompt(tokenizer, ASK)


def test_words_that_a_template_also_begins_with_are_no_rendered_chat(tokenizer):
    assert prompt(tokenizer, "user a") == "<bos> user user a z assistant"


def test_a_begun_answer_is_continued(tokenizer):
    """As transformers' own `continue_final_message` writes it; in generate, stream, score, reading and discovery."""
    begun = "<bos> user a b z assistant c d"
    text = tokenizer.apply_chat_template(BEGUN, tokenize=False, continue_final_message=True)
    assert prompt(tokenizer, BEGUN) == begun == tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    model = build("llama")
    want = sf.generate(model, tokenizer, text, V, chat=False, max_new_tokens=6)
    assert sf.generate(model, tokenizer, [BEGUN], V, max_new_tokens=6).token_ids == want.token_ids
    pieces = sf.stream(model, tokenizer, BEGUN, V, max_new_tokens=6)
    assert "".join(pieces).split() == want.texts[0].split()
    scores = [
        sf.score(model, tokenizer, [each], [" e"], chat=chat, progress=False).log_probs
        for each, chat in ((BEGUN, None), (text, False))
    ]
    assert scores[0] == scores[1]
    assert sf.run.token_read(tokenizer, [BEGUN]) == ["d"]
    read = [
        sf.activations(model, tokenizer, [each], 1, chat=chat, progress=False)[sf.resid_post[1]]
        for each, chat in ((BEGUN, None), (text, False))
    ]
    assert torch.equal(*read)


def test_a_begun_answer_without_words_is_opened(tokenizer):
    assert prompt(tokenizer, [*ASK, {"role": "assistant", "content": ""}]) == RENDERED


def test_a_finished_answer_can_be_read_to_its_end(tokenizer):
    chat = {"continue_final_message": False}
    assert sf.run.token_read(tokenizer, [BEGUN], chat=chat) == ["z"]


@pytest.mark.parametrize("given", [{"enable_thinking": False}, {"chat": {"enable_thinking": False}}], ids=str)
def test_switches_reach_the_template(tokenizer, given):
    switched = RENDERED + " n"
    text = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert prompt(tokenizer, "a b", **given) == switched
    model = build("llama")
    want = sf.generate(model, tokenizer, text, V, chat=False, max_new_tokens=5)
    assert want.token_ids != sf.generate(model, tokenizer, "a b", V, max_new_tokens=5).token_ids
    assert sf.generate(model, tokenizer, "a b", V, max_new_tokens=5, **given).token_ids == want.token_ids
    pieces = sf.stream(model, tokenizer, "a b", V, max_new_tokens=5, **given)
    assert "".join(pieces).split() == want.texts[0].split()
    more = {"max_new_tokens": 5, "progress": False, **given}
    assert sf.sweep(model, tokenizer, "a b", V, [1], **more).texts[0] == want.texts
    assert sf.compare(model, tokenizer, "a b", V, **more).after == want.texts
    assert sf.run.token_read(tokenizer, ["a b"], **{"chat": True, **given}) == ["n"]


@pytest.mark.parametrize("given", [{"enable_thinking": False}, {"chat": {"enable_thinking": False}}], ids=str)
def test_switches_reach_the_template_in_discovery(tokenizer, given):
    sides = ["a b", "c"], ["d", "e f"]
    model = build("llama")
    rendered = [
        [tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True,
                                       enable_thinking=False) for text in side] for side in sides
    ]  # fmt: skip
    want = sf.mean_difference(model, tokenizer, *rendered, 1, progress=False)
    found = sf.mean_difference(model, tokenizer, *sides, 1, progress=False, **{"chat": True, **given})
    assert found.allclose(want)
    assert found.metadata["chat"] == {"enable_thinking": False}
    assert not found.allclose(sf.mean_difference(model, tokenizer, *sides, 1, chat=True, progress=False))


def look_up(place: str) -> str:
    """Look a place up.

    Args:
        place: where.
    """
    return place


def test_tools_reach_the_template(tokenizer):
    assert prompt(tokenizer, "a b", tools=[look_up]) == "<bos> user a b z t assistant"
    with pytest.raises(sf.DataError, match="generate was given tools=..., a switch of chat templates, and this"):
        prompt(words(template=True), "a b", tools=[look_up])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: sf.generate(m, t, "a", enable_thinkin=False), "did you mean 'enable_thinking'?"),
        (lambda m, t: sf.generate(m, t, "a", chat={"enable_thinkin": 1}), "does not read 'enable_thinkin'"),
        (lambda m, t: sf.generate(m, t, "a", chat=False, enable_thinking=1), "which chat=False leaves out"),
        (lambda m, t: sf.generate(m, words(template=True), "a", enable_thinking=1), "does not read it; leave it out"),
        (lambda m, t: sf.generate(m, t, "a", chat="yes"), "A mapping holds switches of the chat template"),
        (lambda m, t: sf.activations(m, t, ["a"], 1, enable_thinkin=0), "activations has no option 'enable_thinkin'"),
        (lambda m, t: sf.mean_difference(m, t, ["a"], ["b"], 1, thinking=0), "does not read it"),
        (lambda m, t: sf.score(m, t, "a", [" b"], temperature=1), "score has no option 'temperature'"),
    ],
)
def test_a_mistaken_switch_is_a_clear_error(tokenizer, call, message):
    with pytest.raises(sf.DataError) as caught:
        call(build("llama"), tokenizer)
    assert message in str(caught.value)


def test_what_a_template_says_against_the_messages_is_one_sentence(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(sf.DataError, match="The chat template refuses these messages: roles must alternate"):
        prompt(tokenizer, ASK)


IDS = [1, 3, 4, 5]


@pytest.mark.parametrize("given", [IDS, torch.tensor(IDS), torch.tensor([IDS]), [IDS], [torch.tensor(IDS)]], ids=str)
def test_token_ids_are_prompts(given):
    model, tokenizer = build("llama"), words(template=True)
    want = sf.generate(model, tokenizer, "a b c", V, chat=False, max_new_tokens=5)
    found = sf.generate(model, tokenizer, given, V, max_new_tokens=5)
    assert (found.prompt_token_ids, found.token_ids) == (want.prompt_token_ids, want.token_ids)
    assert sf.sweep(model, tokenizer, given, V, [1], max_new_tokens=5, progress=False).texts == (want.texts,)
    read = sf.activations(model, tokenizer, given, 1, progress=False)[sf.resid_post[1]]
    assert torch.equal(read, sf.activations(model, tokenizer, ["a b c"], 1, progress=False)[sf.resid_post[1]])
    scored = sf.score(model, tokenizer, given, [" d", " e"], progress=False).log_probs
    assert scored == sf.score(model, tokenizer, "a b c", [" d", " e"], chat=False, progress=False).log_probs
    assert "token ids 1 3 4 5" in str(sf.compare(model, tokenizer, given, V, max_new_tokens=3, progress=False))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([3, -1], "Token ids must not be negative, but -1 is among"),
        ([3, 99], "Text 0 has the token id 99, and the model has embeddings for 99 tokens"),
        (torch.tensor([[0, 1, 3], [1, 3, 4]]), "begin or end with the padding token 0; pass each text without padding"),
        ([3.5, 4.0], "prompts[0] is 3.5 of type float; pass a text, or a conversation"),
        ([True, False], "prompts[0] is True of type bool; pass a text, or a conversation"),
    ],
    ids=str,
)
def test_token_ids_that_are_none_are_refused(given, message):
    with pytest.raises(sf.DataError) as caught:
        sf.generate(build("llama"), words(), given)
    assert message in str(caught.value)
