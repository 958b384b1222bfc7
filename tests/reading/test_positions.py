"""Positions: which token is read, and showing it."""

import pytest
from words import words

import steerfn as sf
from steerfn.reading import Read, explained, position_name, reads

ROWS = [[1, 5, 6, 7, 9], [1, 5, 8, 7, 9]]


@pytest.mark.parametrize(
    ("position", "where"),
    [
        ("last", (4,)),
        (0, (0,)),
        (-2, (3,)),
        ("mean", (0, 1, 2, 3, 4)),
        (lambda ids: ids.index(7), (3,)),
    ],
)
def test_where(position, where):
    assert [read.where for read in reads(ROWS, position)] == [where, where]


def test_the_answer_is_the_first_token_that_differs():
    assert [read.where for read in reads(ROWS, "answer", 1)] == [(2,), (2,)]
    assert reads([[1, 2], [3, 4], [1, 5], [3, 6]], "answer", 2)[1].where == (1,)


@pytest.mark.parametrize(
    ("rows", "position", "pairs", "message"),
    [
        (ROWS, "answer", None, "so it needs pairs: as many positive as negative texts"),
        (
            [[1, 2], [1, 2, 3]],
            "answer",
            1,
            "Pair 0 has no answer token: one of its texts is the beginning of the other",
        ),
        (ROWS, 5, None, "Position 5 is outside a text of 5 tokens"),
        (ROWS, lambda ids: "x", None, "or a function of the token ids, not 'x'."),
        (ROWS, True, None, "or a function of the token ids, not True."),
    ],
)
def test_errors_by_their_text(rows, position, pairs, message):
    with pytest.raises(sf.DataError) as caught:
        reads(rows, position, pairs)
    assert message in str(caught.value)


def test_pitfall_38_the_token_is_shown_by_its_text():
    tokenizer = words()
    ids = tokenizer("a b c d")["input_ids"]
    assert explained(tokenizer, [Read(tuple(ids), (2,))]) == "text 0: token 2 of 5: <bos> a[[b]]c d"
    assert "[[<bos> a b c d]]" in explained(tokenizer, reads([ids], "mean"))
    assert explained(tokenizer, reads([ids] * 9, "last")).endswith("... and 3 more")


def test_explain_prints_it(tiny, capsys):
    sf.mean_difference(tiny, words(), ["a b"], ["a c"], 1, progress=False, explain=True)
    assert capsys.readouterr().out.splitlines() == [
        "text 0: token 2 of 3: <bos> a[[b]]",
        "text 1: token 2 of 3: <bos> a[[c]]",
    ]


def test_names_for_metadata():
    def answer(ids):
        return 0

    assert (position_name("last"), position_name(-2), position_name(answer)) == ("last", -2, "answer")
