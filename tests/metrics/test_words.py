"""repetition, distinct_n, length and refusal: against loops by hand."""

import math

import numpy as np
import pytest

import steerfn as sf
from steerfn.metrics import distinct_n, length, refusal, repetition
from steerfn.metrics._refusal import REFUSALS

LOOP = "it is very very good and it is very very good and it is very very good"
TEXTS = [
    LOOP,
    "one two three four five six",
    "one",
    "",
    "  \n ",
    "a a a a a a",
    "to be or not to be that is the question",
]


def by_hand(text, n):
    """How many n-grams a text has, and how many of them were there before."""
    words, seen, again = text.split(), [], 0
    for start in range(len(words) - n + 1):
        gram = " ".join(words[start : start + n])
        again += gram in seen
        seen.append(gram)
    return len(seen), again


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_and_distinct_n_are_counted_by_hand(n):
    counts = [by_hand(text, n) for text in TEXTS]
    again = [again / total if total else math.nan for total, again in counts]
    new = [1 - share for share in again]
    np.testing.assert_allclose(repetition(TEXTS, n=n), again)
    np.testing.assert_allclose(distinct_n(TEXTS, n=n), new)


def test_loops_repeat_and_plain_text_does_not():
    loop, plain = repetition([LOOP, "Rain is expected in the north, and the coast will stay dry until noon."])
    assert loop > 0.5 > plain == 0
    loop, plain = distinct_n([LOOP, "Rain is expected in the north, and the coast will stay dry until noon."])
    assert loop < 0.5 < plain == 1
    assert repetition.better == "lower" and distinct_n.better == "higher"


def test_their_n_is_four_and_two_unless_told_otherwise():
    for metric, usual in ((repetition, 4), (distinct_n, 2)):
        assert metric([LOOP]) == metric([LOOP], n=usual) != metric.using(n=1)([LOOP])
        assert math.isnan(metric(["word " * (usual - 1)])[0]) and not math.isnan(metric(["word " * usual])[0])
        with pytest.raises(sf.DataError, match="`n` must be a positive integer, got 0."):
            metric(["a"], n=0)
        with pytest.raises(sf.DataError, match="`n` must be a positive integer, got 1.5."):
            metric(["a"], n=1.5)


def test_length_counts_words():
    assert length(["", " ", "one", "two  words\n", "so, three-part words here"]) == [0, 0, 1, 2, 4]
    assert length([]) == repetition([]) == distinct_n([]) == refusal([]) == []


REFUSING = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but that is not something we do here.",
    "I CANNOT ASSIST you in making a bomb.",
    "Sorry, I can`t do this.",
    "As an AI, I am not able to write that for you.",
    "I will not provide instructions for this.",
    "I must decline.",
    "My apologies, but no.",
    "I apologise, but this would be harmful.",
    "Thank you for asking. However, I won't help you hurt anyone.",
]
ANSWERING = [
    "Sure, here is how.",
    "I can't wait to tell you about my day!",
    "I can't help but smile when I think of it.",
    "I'm sorry to hear that your dog is ill.",
    "As an AI, I can tell you a lot about bees.",
    "I won't give up on you.",
    "He cannot swim.",
    "You can't go wrong with pasta.",
]


def test_refusals_are_told_from_answers():
    assert refusal(REFUSING) == [1.0] * len(REFUSING)
    assert refusal(ANSWERING) == [0.0] * len(ANSWERING)
    assert [math.isnan(value) for value in refusal(["", " \n", "No."])] == [True, True, False]


def test_every_phrase_of_the_list_counts_however_it_is_written():
    assert len(set(REFUSALS)) == len(REFUSALS) and all(phrase == phrase.lower().strip() for phrase in REFUSALS)
    for phrase in REFUSALS:
        assert refusal([f"Well. {phrase.capitalize().replace(chr(39), chr(0x2019))} x."]) == [1.0], phrase


def test_other_phrases_give_other_numbers():
    mine = refusal.using(refusal_phrases=["As an AI", "Don’t"])
    assert mine(["as an ai, I can", "Don't.", "I cannot help with that."]) == [1.0, 1.0, 0.0]
    for wrong in ("I cannot", [], ["a", " "], [3]):
        with pytest.raises(sf.DataError, match=r"refusal_phrases must be a list of texts such as \['I cannot'\], not"):
            refusal(["a"], refusal_phrases=wrong)
