"""A judge as a metric: what it is asked, how its answers are read, and what becomes of those that cannot be."""

import math
import warnings

import numpy as np
import pytest
from steering import vector
from words import words

import steerfn as sf
from steerfn.metrics import AXBENCH, Setting, judge
from steerfn.metrics._judge import rating_of
from steerfn.metrics._metric import as_metrics, measure

NAN = math.nan


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("Rating: [[1]]", 1),
        ("It is there.\nRating: [[2]]\n", 2),
        ("**rating : [[ 1.5 ]]** as I said", 1.5),
        ("Rating: [[0]]. To repeat: Rating: [[0]]", 0),
        ("Fluent.\n2", 2),
        (" 0 \n\n", 0),
        ("2", 2),
        ("Rating: [[1]]\n2", 1),  # the form counts before a bare number
        ("Rating: [[1]] or Rating: [[2]]", NAN),
        ("Rating: [[3]]", NAN),
        ("Rating: [[-1]]", NAN),
        ("3", NAN),
        ("Rating: 1", NAN),
        ("[[1]]", NAN),
        ("I give it 2", NAN),
        ("2 of 2", NAN),
        ("1\nThat is all.", NAN),
        ("", NAN),
        (" \n", NAN),
        ("nan", NAN),
        ("Rating: [[one]]", NAN),
    ],
)
def test_a_rating_is_read_strictly(answer, rating):
    np.testing.assert_equal(rating_of(answer, 0, 2), float(rating))


def test_each_text_is_put_into_the_template_with_its_prompt():
    seen = []

    def ask(question):
        seen.append(question)
        return f"Rating: [[{len(seen) - 1}]]"

    template = "Concept {concept}, asked {instruction}, said <{text}> {{literally}}"
    mine = judge(ask, template, "mine", concept="bees")
    assert mine.name == "mine" and mine.needs == ("prompts",) and mine.better == "higher" and mine.unit == "0 to 2"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "r"}]
    assert mine(["a {text}", "b", "c"], prompts=["p", talk, "s"]) == [0, 1, 2]
    assert seen == [
        "Concept bees, asked p, said <a {text}> {literally}",
        "Concept bees, asked r, said <b> {literally}",
        "Concept bees, asked s, said <c> {literally}",
    ]
    with pytest.raises(sf.DataError, match="There are 2 texts and 1 prompts; pass one for each text."):
        mine(["a", "b"], prompts=["p"])


def test_a_template_without_the_instruction_needs_no_prompts():
    mine = judge(lambda question: str(question.count("!")), "{text}")
    assert mine.needs == () and mine.name == "judge"
    assert mine(["a", "b!", "c!!"]) == [0, 1, 2] and mine([]) == []
    found = measure(as_metrics([mine, "length"]), ["one two!"], Setting())
    assert found["judge"].tolist() == [1] and found["length"].tolist() == [2]


def test_the_same_question_is_asked_once():
    seen = []
    mine = judge(lambda question: seen.append(question) or "1", "{text}")
    assert mine(["a", "b", "a", "a"]) == [1, 1, 1, 1] and seen == ["a", "b"]


def test_a_batched_judge_is_asked_for_all_at_once():
    calls = []

    def ask(questions):
        calls.append(list(questions))
        return ["2" if "x" in question else "0" for question in questions]

    assert judge(ask, "{text}", batched=True)(["x", "y", "x"]) == [2, 0, 2]
    assert calls == [["x", "y"]]


def test_what_cannot_be_read_is_nan_and_counted():
    answers = {"a": "Rating: [[1]]", "b": "I would rather not say.", "c": "Rating: [[7]]", "d": "2"}
    mine = judge(answers.__getitem__, "{text}", "joy")
    with pytest.warns(sf.SteerWarning) as caught:
        found = mine(["a", "b", "c", "d", "b"])
    np.testing.assert_equal(found, [1, NAN, NAN, 2, NAN])
    [warning] = caught
    assert "The judge 'joy' gave no rating from 0 to 2 that can be read for 3 of 5 texts, which are NaN" in str(
        warning.message
    )
    assert "it first said 'I would rather not say.'. Tell it to end with a line such as 'Rating: [[1]]'." in str(
        warning.message
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine(["a", "d"])


def test_options_change_the_metric():
    ask = {"a": "Rating: [[7]]"}.__getitem__
    wide = judge(ask, "{text}", scale=(1, 10), better="lower")
    assert wide(["a"]) == [7] and wide.unit == "1 to 10" and wide.better == "lower"
    with pytest.warns(sf.SteerWarning):
        assert math.isnan(judge(ask, "{text}")(["a"])[0])
    assert "Rated by __getitem__" in wide.about


@pytest.mark.parametrize("part", ["concept", "instruction", "fluency"])
def test_axbenchs_questions_can_be_asked(part):
    seen = []
    fields = {"concept": "golden bridges"} if part == "concept" else {}
    mine = judge(lambda question: seen.append(question) or "Good.\nRating: [[2]]", AXBENCH[part], part, **fields)
    given = {"prompts": ["Tell me about {bees}."]} if part == "instruction" else {}
    assert mine(["Bees {live} in hives."], **given) == [2]
    [question] = seen
    assert "Bees {live} in hives." in question and question.endswith("Rating: [[number]]")
    assert ("golden bridges" in question) == (part == "concept")
    assert ("Tell me about {bees}." in question) == (part == "instruction")
    assert mine.needs == (("prompts",) if part == "instruction" else ())


def test_axbenchs_templates_stay_as_they_are():
    assert list(AXBENCH) == ["concept", "instruction", "fluency"]
    with pytest.raises(TypeError):
        AXBENCH["concept"] = ""
    for template in AXBENCH.values():
        assert all(f"\n{rating} - " in template for rating in (0, 1, 2)) and max(map(len, template.splitlines())) < 250


def test_they_go_into_axbenchs_protocol(tiny):
    """The harmonic mean of three judges, through the protocol that combines them."""
    ratings = {"concept": "Rating: [[1]]", "instruction": "Rating: [[2]]", "fluency": "Rating: [[2]]"}
    fields = {"concept": {"concept": "bees"}}
    judges = {
        part: judge(lambda _, said=said: said, AXBENCH[part], part, **fields.get(part, {}))
        for part, said in ratings.items()
    }
    pytest.importorskip("scipy")
    v = vector(sf.resid_post[1])
    found = sf.protocols.axbench(
        tiny, words(), v, ["a b", "c d", "e f", "g"], concept="bees", judge=judges, alphas=[1.0], max_new_tokens=2,
        chat=False, progress=False,
    )  # fmt: skip
    assert found.figures["score"].mean == pytest.approx(3 / (1 / 1 + 1 / 2 + 1 / 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ask": "gpt"}, "ask must be a function that takes a question and returns the answer, not 'gpt'."),
        ({"template": 3}, "template must be a text with the field {text}, not 3."),
        ({"template": "Rate it."}, "The template has no field {text}, so every question would be the same; add it."),
        ({"template": "{text} {"}, "The template's braces cannot be read ("),
        (
            {"template": "{text} {}"},
            "The template has the field {}, which is not a name; double the braces that are not fields.",
        ),
        ({"template": "{text.upper}"}, "The template has the field {text.upper}, which is not a name"),
        ({"template": "{text} {concept}"}, 'The template has the field {concept}; pass it, as in judge(..., concept="'),
        ({"concept": "bees"}, "The template has no field {concept} to fill; it has text."),
        ({"template": "{text} {text}", "concept": "b"}, "The template has no field {concept} to fill; it has text."),
        (
            {"template": "{text} {concept}", "concept": " "},
            "concept must be a text that goes into the template, not ' '.",
        ),
        ({"template": "{text} {concept}", "concept": 3}, "concept must be a text that goes into the template, not 3."),
        ({"text": "x"}, "The template has no field {text} to fill; it has text."),
        ({"scale": (2, 0)}, "scale must be the lowest and the highest rating, such as (0, 2), not (2, 0)."),
        ({"scale": 2}, "scale must be the lowest and the highest rating, such as (0, 2), not 2."),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_asked(given, message):
    with pytest.raises(sf.DataError) as caught:
        judge(**{"ask": lambda question: "1", "template": "{text}", **given})
    assert message in str(caught.value)


def test_answers_that_are_none():
    with pytest.raises(sf.DataError, match="The judge must answer with a text, not 2."):
        judge(lambda question: 2, "{text}")(["a"])
    with pytest.raises(sf.DataError, match="The judge gave 1 answers to 2 questions; it must return one for each."):
        judge(lambda questions: ["1"], "{text}", batched=True)(["a", "b"])
