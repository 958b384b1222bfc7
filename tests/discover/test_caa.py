"""CAA: against a plain loop, with and without a template; which token is read; every wrong item."""

import json
from pathlib import Path

import pytest
import torch
from words import words

import steerfn as sf

pytestmark = pytest.mark.steady

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ITEMS = [
    {"question": "a b c d", "answer_matching_behavior": " x e", "answer_not_matching_behavior": " y e"},
    {"question": "f g ", "answer_matching_behavior": "y", "answer_not_matching_behavior": "x", "more": 1},
    {"question": "h i j k l m", "answer_matching_behavior": "n x", "answer_not_matching_behavior": "n y z"},
]
ANSWER = {False: [5, 3, 8], True: [7, 5, 10]}
"""Where the answers differ, in tokens: BOS, (user), question, (assistant), answer."""


def by_hand(model, tokenizer, chat, site):
    """The mean difference at the answer tokens, one text at a time."""
    differences = []
    for item, at in zip(ITEMS, ANSWER[chat], strict=True):
        states = []
        for key in ("answer_matching_behavior", "answer_not_matching_behavior"):
            question, answer = item["question"], item[key].strip()
            text = f"<bos> user {question} assistant {answer}" if chat else f"<bos> {question.rstrip()} {answer}"
            ids = torch.tensor([tokenizer.convert_tokens_to_ids(text.split())])
            with torch.no_grad():
                _, acts = sf.capture(model, site)(ids)
            states.append(acts[site][0, at].double())
        differences.append(states[0] - states[1])
    return torch.stack(differences).mean(0)


@pytest.mark.parametrize("chat", [True, False])
def test_equals_the_plain_loop(tiny, chat):
    tokenizer = words(template=True)
    for options in ({}, {"batch_size": 1}, {"batch_size": 2}):
        v = sf.caa(tiny, tokenizer, ITEMS, sf.resid_mid[1], chat=chat, progress=False, **options)
        expected = by_hand(tiny, tokenizer, chat, sf.resid_mid[1])
        torch.testing.assert_close(v[sf.resid_mid[1]].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_template_is_used_where_there_is_one(tiny):
    chat, plain = (
        sf.caa(tiny, words(template=True), ITEMS, 1, progress=False),
        sf.caa(tiny, words(), ITEMS, 1, progress=False),
    )
    torch.testing.assert_close(chat[1].double(), by_hand(tiny, words(), True, sf.resid_post[1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain[1].double(), by_hand(tiny, words(), False, sf.resid_post[1]), rtol=1e-5, atol=1e-5)
    assert chat.metadata["chat"] is True and plain.metadata["chat"] is False


def test_pitfall_38_the_answer_token_is_read(tiny, capsys):
    v = sf.caa(tiny, words(template=True), ITEMS, 1, progress=False, explain=True)
    assert v.metadata["tokens_read"] == {"x": 3, "y": 3} and v.metadata["position"] == "answer"
    assert v.metadata["method"] == "caa" and v.metadata["counts"] == {"positive": 3, "negative": 3}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("text 0: token 7 of 9: ...") and "d assistant[[x]]e" in said[0]


def test_another_position_is_taken(tiny):
    v = sf.caa(tiny, words(), ITEMS, 1, position="last", progress=False)
    assert v.metadata["position"] == "last" and v.metadata["tokens_read"] == {"e": 2, "x": 2, "y": 1, "z": 1}


def test_a_contrast_set_with_items(tiny):
    found = sf.datasets.ContrastSet(
        "letters", [i["question"] + " x" for i in ITEMS], ["y"] * 3, paired=True, items=tuple(ITEMS)
    )
    assert sf.caa(tiny, words(), found, 1, progress=False).identical(sf.caa(tiny, words(), ITEMS, 1, progress=False))
    with pytest.raises(sf.DataError, match="This contrast set has no questions with answers"):
        sf.caa(tiny, words(), sf.datasets.ContrastSet("plain", ["a"], ["b"]), 1, progress=False)


def item(**changes):
    return {"question": "a", "answer_matching_behavior": "x", "answer_not_matching_behavior": "y"} | changes


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "items is empty; pass at least one dict with question, answer_matching_behavior, answer_not_matching"),
        (item(), "items must be a list of dicts with question"),
        ("text", "items must be a list of dicts with question"),
        (
            5,
            "items must be a list of dicts with question, answer_matching_behavior, answer_not_matching_behavior, "
            "not 5.",
        ),
        (
            [item(), {"question": "a"}],
            "items[1] has no text for answer_matching_behavior, answer_not_matching_behavior;",
        ),
        ([item(question=None)], "items[0] has no text for question; pass dicts with question"),
        ([item(question=" ")], "items[0] has no text for question;"),
        (["a"], "items[0] has no text for question, answer_matching_behavior, answer_not_matching_behavior;"),
        ([item(answer_not_matching_behavior=" x ")], "items[0] has the same answer twice, 'x', so its difference is"),
        ([item(answer_not_matching_behavior="x y")], "Pair 0 has no answer token: one of its texts is the beginning"),
    ],
)
def test_wrong_items_are_one_sentence(tiny, items, message):
    with pytest.raises(sf.DataError) as caught:
        sf.caa(tiny, words(), items, 1, progress=False)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("chat", "message"),
    [(True, "This tokenizer has no chat template; pass texts with chat=False"), ("yes", "chat is True, False or None")],
)
def test_wrong_options_are_one_sentence(tiny, chat, message):
    with pytest.raises(sf.DataError, match=message):
        sf.caa(tiny, words(), ITEMS, 1, progress=False, chat=chat)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_real_questions_on_the_real_model(demo):
    """Pitfalls 23 and 38: one BOS of the template, the letter is read, and the two texts differ in nothing else."""
    model, tokenizer = demo
    items = json.loads((DATA / "caa" / "generate" / "corrigible-neutral-HHH.json").read_text())[:6]
    v = sf.caa(model, tokenizer, items, 10, progress=False)
    assert set(v.metadata["tokens_read"]) == {"A", "B"}
    differences = []
    for each in items:
        states, rows = [], []
        for key in ("answer_matching_behavior", "answer_not_matching_behavior"):
            messages = [{"role": "user", "content": each["question"]}, {"role": "assistant", "content": each[key]}]
            ids = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")["input_ids"]
            letter = each[key].strip(" ()")
            last = max(i for i, token in enumerate(ids[0].tolist()) if tokenizer.decode([token]) == letter)
            with torch.no_grad():
                _, acts = sf.capture(model, 10)(ids)
            states.append(acts[sf.resid_post[10]][0, last].double())
            rows.append(ids[0].tolist()[:last] + ids[0].tolist()[last + 1 :])
        assert rows[0] == rows[1]
        differences.append(states[0] - states[1])
    expected = torch.stack(differences).mean(0)
    assert (v[10].double() - expected).norm() < 1e-4 * expected.norm()
