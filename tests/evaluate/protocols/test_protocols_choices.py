"""CAA, steerability and TruthfulQA against loops over a plain model with a plain hook."""

import math

import numpy as np
import pytest
import torch
from asking import QUESTIONS, TRUTH, answers, lettered, logits, question, with_contents_swapped
from families import build
from steering import vector

import steerfn as sf

pytestmark = pytest.mark.steady

LAYER = 1
V = vector(sf.resid_post[LAYER], scale=1.5)
QUIET = {"progress": False, "chat": False}
BOTH = [QUESTIONS, [with_contents_swapped(item) for item in QUESTIONS]]


def by_hand(model, v=None, alpha=1.0, items=QUESTIONS):
    """The log-probabilities of both answers, `[questions, 2]`."""
    direction = None if v is None else alpha * v[sf.resid_post[LAYER]]
    return np.array([answers(model, lettered(), item, direction, LAYER) for item in items])


def share(log_probs):
    return np.exp(log_probs[:, 0]) / np.exp(log_probs).sum(1)


def values(found, name, condition="steered"):
    return np.array([record[name] for record in found.records if record["condition"] == condition])


def test_caa_is_a_loop_over_questions_and_orders(tiny):
    found = sf.protocols.caa(tiny, lettered(), V, QUESTIONS, alpha=2.0, seed=4, **QUIET)
    random = sf.random_vector(like=V, seed=4)
    for condition, v in (("steered", V), ("unsteered", None), ("random 1", random)):
        given, turned = (by_hand(tiny, v, 2.0, items) for items in BOTH)
        np.testing.assert_allclose(values(found, "p_match", condition), (share(given) + share(turned)) / 2, atol=1e-5)
        np.testing.assert_allclose(values(found, "p_match_given_order", condition), share(given), atol=1e-5)
        mass = (np.exp(given).sum(1) + np.exp(turned).sum(1)) / 2
        np.testing.assert_allclose(values(found, "mass", condition), mass, rtol=1e-3)
        is_a = np.array([item["answer_matching_behavior"] == "(A)" for item in QUESTIONS])
        first = (np.where(is_a, share(given), 1 - share(given)) + np.where(is_a, 1 - share(turned), share(turned))) / 2
        np.testing.assert_allclose(values(found, "p_first_letter", condition), first, atol=1e-5)
    assert found.figures["p_match"].mean == pytest.approx(values(found, "p_match").mean())
    effect = found.effects["unsteered"]["p_match"]
    change = values(found, "p_match") - values(found, "p_match", "unsteered")
    assert effect.estimate.mean == pytest.approx(change.mean()) and abs(change).max() > 0.01 and effect.n == 5
    assert set(found.controls) == {"random"} and found.about["alpha"] == 2.0


def test_the_same_in_the_chat_template(tiny):
    tokenizer = lettered(template=True)
    found = sf.protocols.caa(tiny, tokenizer, V, QUESTIONS, both_orders=False, progress=False)
    for item, mine in zip(QUESTIONS, values(found, "p_match"), strict=True):
        ids = tokenizer(f"user {item['question']} assistant", add_special_tokens=False)["input_ids"]
        after = [*ids, tokenizer.convert_tokens_to_ids("(")]
        odds = logits(tiny, after, V[sf.resid_post[LAYER]], LAYER, len(ids) - 1)[-1]
        a, b = (float(odds[tokenizer.convert_tokens_to_ids(letter)]) for letter in "AB")
        match = 1 / (1 + math.exp(b - a)) if item["answer_matching_behavior"] == "(A)" else 1 / (1 + math.exp(a - b))
        assert mine == pytest.approx(match, abs=1e-5)


def preferring_a(seed=0):
    """A model whose A is e^2 times as likely as its B whatever the text, steered or not."""
    model, tokenizer = build("llama"), lettered()
    head = torch.nn.Linear(32, 99)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        for letter, bias in (("A", 2.0), ("B", 0.0)):
            head.weight[tokenizer.convert_tokens_to_ids(letter)] = 0
            head.bias[tokenizer.convert_tokens_to_ids(letter)] = bias
    model.lm_head = head
    return model


def test_letter_bias_alone_scores_a_half():
    # All matching answers are (A): in the given order the bias looks like the behaviour.
    items = [question("a b", "c", "d"), question("e f", "g h", "i"), question("j", "k", "l m")]
    found = sf.protocols.caa(preferring_a(), lettered(), V, items, **QUIET)
    biased = 1 / (1 + math.exp(-2))
    for condition in ("steered", "unsteered", "random"):
        np.testing.assert_allclose(values(found, "p_match", condition), 0.5, atol=1e-6)
        np.testing.assert_allclose(values(found, "p_match_given_order", condition), biased, atol=1e-6)
        np.testing.assert_allclose(values(found, "p_first_letter", condition), biased, atol=1e-6)
    assert any(note.startswith("Letter bias: the earlier letter has a share of 0.88 unsteered") for note in found.notes)
    assert not found.is_shown("p_match")
    one = sf.protocols.caa(preferring_a(), lettered(), V, items, both_orders=False, **QUIET)
    np.testing.assert_allclose(values(one, "p_match"), biased, atol=1e-6)
    assert any("Only both_orders=True takes that out" in note for note in one.notes)


def test_little_mass_is_told(tiny):
    model = preferring_a()
    with torch.no_grad():
        model.lm_head.bias[[lettered().convert_tokens_to_ids(letter) for letter in "AB"]] = -30.0
    notes = sf.protocols.caa(model, lettered(), V, QUESTIONS, **QUIET).notes
    assert any("The two answers together have a probability of" in note for note in notes)


def test_answers_that_are_words_and_answers_that_begin_alike(tiny):
    yes = {"question": "a b c", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    long = {"question": "d e", "answer_matching_behavior": " a b c", "answer_not_matching_behavior": " a d"}
    found = sf.protocols.caa(tiny, lettered(), V, [yes, long], **QUIET)
    assert "p_first_letter" not in found.figures
    tokenizer = lettered()
    ids = tokenizer("a b c")["input_ids"]
    odds = logits(tiny, ids, V[sf.resid_post[LAYER]], LAYER, len(ids) - 1)[-1]
    mine, other = (float(odds[tokenizer.convert_tokens_to_ids(word)]) for word in ("Yes", "No"))
    assert values(found, "p_match")[0] == pytest.approx(1 / (1 + math.exp(other - mine)), abs=1e-5)
    # After "a" the first goes on with b and c, the other with d.
    prompt = tokenizer("d e")["input_ids"]
    both = tokenizer("d e a b")["input_ids"]
    after = logits(tiny, both, V[sf.resid_post[LAYER]], LAYER, len(prompt) - 1).log_softmax(-1)
    b, c, d = (tokenizer.convert_tokens_to_ids(word) for word in "bcd")
    first, second = float(after[-2, b] + after[-1, c]), float(after[-2, d])
    assert values(found, "p_match")[1] == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-5)
    with pytest.raises(sf.DataError, match="' a' and ' a b' cannot be told apart by their tokens: one begins like the"):
        broken = {**yes, "answer_matching_behavior": " a", "answer_not_matching_behavior": " a b"}
        sf.protocols.caa(tiny, lettered(), V, [broken], **QUIET)


def test_one_question_has_no_interval_and_no_difference(tiny):
    found = sf.protocols.caa(tiny, lettered(), V, QUESTIONS[:1], **QUIET)
    assert math.isnan(found.figures["p_match"].low) and not found.effects and "p_match" in str(found)


def test_steerability_is_the_slope_of_a_loop(tiny):
    alphas = [-1.0, 0.0, 0.5, 2.0]
    found = sf.protocols.steerability(tiny, lettered(), V, QUESTIONS, alphas=alphas, **QUIET)
    for condition, v in (("steered", V), ("random 1", sf.random_vector(like=V, seed=0))):
        odds = []
        for alpha in alphas:
            orders = [by_hand(tiny, v, alpha, items) for items in BOTH]
            odds.append(np.mean([each[:, 0] - each[:, 1] for each in orders], axis=0))
        slopes = np.polyfit(alphas, np.array(odds), 1)[0]
        np.testing.assert_allclose(values(found, "slope", condition), slopes, atol=1e-4)
        np.testing.assert_allclose(values(found, "propensity", condition), np.array(odds).T, atol=1e-4)
        if condition == "steered":
            assert found.figures["slope"].mean == pytest.approx(slopes.mean(), abs=1e-4)
            assert found.figures["spread"].mean == pytest.approx(slopes.std(ddof=1), abs=1e-4)
            assert found.figures["anti_steerable"].mean == pytest.approx((slopes <= 0).mean())
        given, turned = (
            np.polyfit(alphas, np.array([o[:, 0] - o[:, 1] for o in (by_hand(tiny, v, a, items) for a in alphas)]), 1)[
                0
            ]
            for items in BOTH
        )
        is_a = np.array([item["answer_matching_behavior"] == "(A)" for item in QUESTIONS])
        bias = np.where(is_a, given - turned, turned - given)
        np.testing.assert_allclose(values(found, "letter_bias", condition), bias, atol=2e-4)
    drawn = [values(found, "slope", f"random {i + 1}") for i in range(5)]
    assert found.draws == 5 and found.controls["random"]["slope"].mean == pytest.approx(np.mean(drawn))
    assert found.effects["unsteered"]["slope"].estimate.mean == pytest.approx(found.figures["slope"].mean)
    assert not found.baseline and found.about["alphas"] == alphas


def test_a_letter_bias_moves_no_slope():
    found = sf.protocols.steerability(preferring_a(), lettered(), V, QUESTIONS, **QUIET)
    np.testing.assert_allclose(values(found, "slope"), 0, atol=1e-6)
    assert not found.is_shown("slope")
    with pytest.raises(sf.DataError, match=r"A slope needs at least two strengths, not \[1.0\]; pass more alphas"):
        sf.protocols.steerability(preferring_a(), lettered(), V, QUESTIONS, alphas=[1], **QUIET)


def answer_log_prob(model, text, answer, v):
    tokenizer = lettered()
    ids, whole = tokenizer(text)["input_ids"], tokenizer(f"{text} {answer}")["input_ids"]
    found = logits(model, whole, v, LAYER, len(ids) - 1).log_softmax(-1)
    return sum(float(found[t - 1, whole[t]]) for t in range(len(ids), len(whole)))


@pytest.mark.parametrize("primer", ["", "Q: y\nA: z\n\n"])
def test_truthfulqa_is_a_loop_over_answers(tiny, primer):
    found = sf.protocols.truthfulqa(tiny, lettered(), V, TRUTH, alpha=1.0, primer=primer, progress=False)
    for condition, v in (("steered", V[sf.resid_post[LAYER]]), ("unsteered", None)):
        for item, mine, ours in zip(
            TRUTH, values(found, "mc1", condition), values(found, "mc2", condition), strict=True
        ):
            text = f"{primer}Q: {item['question']}\nA:"
            one = {answer: answer_log_prob(tiny, text, answer, v) for answer in item["mc1_targets"]}
            top = max(one, key=one.get)
            assert mine == item["mc1_targets"][top]
            two = {answer: math.exp(answer_log_prob(tiny, text, answer, v)) for answer in item["mc2_targets"]}
            true = sum(p for answer, p in two.items() if item["mc2_targets"][answer])
            assert ours == pytest.approx(true / sum(two.values()), abs=1e-4)
    assert any("Without the published primer" in note for note in found.notes) == (not primer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, r"data\[0\] is .*; an item is a dict with question, mc1_targets and mc2_targets"),
        ({"mc1_targets": ["a"]}, r"data\[0\] has \['a'\] as its mc1_targets; it is a mapping of answers to 1"),
        ({"mc2_targets": {"a": 2}}, r"data\[0\] has {'a': 2} as its mc2_targets"),
        ({"mc2_targets": {"a": 1}}, r"data\[0\] has 1 true answers of 1 in mc2_targets; it needs true and false"),
        ({"mc1_targets": {"a": 1, "b": 1, "c": 0}}, r"data\[0\] has 2 best answers in mc1_targets; MC1 has one"),
    ],
)
def test_truthfulqa_items_that_are_none(tiny, change, message):
    with pytest.raises(sf.DataError, match=message):
        sf.protocols.truthfulqa(tiny, lettered(), V, [{**TRUTH[0], **change}], progress=False)
