"""Positions: which token is read, and showing it."""

import json

import numpy as np
import pytest
import torch
from families import build
from words import words

import steerfn as sf
from steerfn.run._positions import Read, describe_reads, position_name, position_named, reads

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
    assert describe_reads(tokenizer, [Read(tuple(ids), (2,))]) == "text 0: token 2 of 5: <bos> a[[b]]c d"
    assert "[[<bos> a b c d]]" in describe_reads(tokenizer, reads([ids], "mean"))
    assert describe_reads(tokenizer, reads([ids] * 9, "last")).endswith("... and 3 more")


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


IDS = list(range(10, 15))
SEVERAL = [
    (slice(1, None), [1, 2, 3, 4]),
    (slice(-2, None), [3, 4]),
    (slice(None, None, 2), [0, 2, 4]),
    (range(1, 3), [1, 2]),
    ([0, -1], [0, 4]),
    ((2,), [2]),
    ([1, -4], [1]),
    (np.array([1, 3]), [1, 3]),
    (torch.tensor([1, 3]), [1, 3]),
    (np.int64(-1), [4]),
    (lambda ids: range(1, len(ids)), [1, 2, 3, 4]),
    (lambda ids: [i for i, token in enumerate(ids) if token % 2], [1, 3]),
    (lambda ids: "mean", [0, 1, 2, 3, 4]),
]


@pytest.mark.parametrize(
    ("position", "where"), SEVERAL, ids=lambda value: "function" if callable(value) else str(value)
)
def test_several_tokens_are_read_as_their_mean(position, where):
    [read] = reads([IDS], position)
    assert list(read.where) == where
    model, tokenizer = build("llama"), words()
    texts = ["a b c d", "e f g h"]
    found = sf.activations(model, tokenizer, texts, 1, position=position, progress=False)[sf.resid_post[1]]
    ids = torch.tensor(tokenizer(texts)["input_ids"])
    if not callable(position):
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(found, states[:, where].mean(1))


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ([0, 5], "Position 5 is outside a text of 5 tokens"),
        (range(3, 7), "Position 5 is outside a text of 5 tokens"),
        (slice(5, None), "Position slice(5, None, None) selects no token of a text of 5 tokens"),
        ([], "Position [] selects no token"),
        ([True, False], "position is 'last', 'mean', 'mean_all', 'answer' (for pairs), an index, a slice"),
        ([0.5], "not [0.5]."),
        (slice("a", None), "the bounds of a slice are ints or None"),
    ],
    ids=str,
)
def test_tokens_that_cannot_be_read_are_refused(position, message):
    with pytest.raises(sf.DataError) as caught:
        reads([IDS], position)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "position", [slice(1, None), range(1, 3), [0, -1], "mean", -2, np.int64(1), np.array([1, 2])], ids=str
)
def test_a_position_is_written_down_so_that_it_can_be_read_again(position):
    name = json.loads(json.dumps(position_name(position)))
    assert reads([IDS], position_named(name)) == reads([IDS], position)


def test_a_vector_says_which_tokens_were_read():
    v = sf.mean_difference(
        build("llama"), words(), ["a b c"], ["d e f"], 1, position=slice(1, None), progress=False, quality=False
    )
    assert v.metadata["position"] == "slice(1, None, None)"
    assert position_named(sf.SteeringVector({1: v[1]}, v.metadata).metadata["position"]) == slice(1, None)
