"""Where two texts differ, by words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerfn.output._diff import runs

TEXTS = st.text(st.sampled_from("ab \n,日本"), max_size=24)


@given(TEXTS, TEXTS)
def test_the_pieces_make_up_the_text_and_what_is_equal_is_equal(before, after):
    found = runs(before, after)
    for text, pieces in zip((before, after), found, strict=True):
        assert "".join(piece for piece, _ in pieces) == text
        assert all(piece for piece, _ in pieces)
        assert all(one[1] != other[1] for one, other in zip(pieces, pieces[1:], strict=False))
        assert all(piece == piece.strip() for piece, changed in pieces if changed)
    kept = ["".join("".join(piece.split()) for piece, changed in pieces if not changed) for pieces in found]
    assert kept[0] == kept[1]


@given(TEXTS)
def test_a_text_does_not_differ_from_itself(text):
    assert runs(text, text) == (([(text, False)],) * 2 if text else ([], []))


@pytest.mark.parametrize(
    ("before", "after", "left", "right"),
    [
        ("a good day", "a bad day", ["good"], ["bad"]),
        ("a day", "a very bad day", [], ["very bad"]),
        ("one two three", "four five", ["one two three"], ["four five"]),
        # "the" and "of" in two texts that have nothing to do with each other
        ("he saw the end of it", "she is the queen of all", ["he saw the end of it"], ["she is the queen of all"]),
        ("x a b c y", "z a b c w", ["x", "y"], ["z", "w"]),  # longer than the differences around it
        ("same start x y", "same start z", ["x y"], ["z"]),
        ("x same end", "y z same end", ["x"], ["y z"]),
        ("今日は良い日", "今日は悪い日", ["良"], ["悪"]),
        ("", "a b", [], ["a b"]),
    ],
)
def test_what_is_marked(before, after, left, right):
    found = runs(before, after)
    assert [[piece for piece, changed in each if changed] for each in found] == [left, right]


def test_frequent_words_of_long_texts_are_compared_too():
    before = "a b c d " * 100
    assert [piece for piece, changed in runs(before, before.replace("a", "z", 1))[1] if changed] == ["z"]
