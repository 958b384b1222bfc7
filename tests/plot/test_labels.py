"""Texts in figures: readable whatever a token holds, never longer than asked, never taken for mathematics."""

import pytest
from matplotlib.figure import Figure
from overlap import boxes
from words import words

from steerfn.plot import _figure
from steerfn.plot._figure import (
    columns,
    contrasting,
    distinct,
    drawable_text,
    finish,
    fitting,
    heading,
    lines_of,
    prompt_text,
    token_texts,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" good", "·good"),
        ("\n", "⏎"),
        ("a\tb", "a⇥b"),
        ("\u200b", "\\u200b"),  # no width
        ("\u202eabc", "\\u202eabc"),  # would turn the line around
        ("\u00a0", "\\xa0"),
        ("\x00", "\\x00"),
        ("\ud800", "\\ud800"),  # half of a pair
        ("\u0301", "◌\u0301"),
        ("<|im_end|>", "<|im_end|>"),
        ("naïve $5_0$", "naïve·$5_0$"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_written(text, expected):
    assert drawable_text(text, spaces=True) == expected


def test_a_character_without_a_glyph_is_written_as_python_does(monkeypatch):
    monkeypatch.setattr(_figure, "MORE", ())
    assert drawable_text("你 a") == "\\u4f60 a"
    assert drawable_text("你好", 9) == "\\u4f60…"  # an escape is not cut
    monkeypatch.setattr("steerfn.plot._figure.has_glyph", lambda character, kind: True)
    assert drawable_text("你 a") == "你 a"


@pytest.mark.parametrize("limit", [1, 2, 5, 11, 12])
def test_a_cut_text_is_as_long_as_asked(limit):
    text = "hello world!"
    assert len(drawable_text(text, limit)) == limit
    first, last = drawable_text(text, limit), drawable_text(text, limit, end=True)
    assert first == (text if limit == 12 else text[: limit - 1] + "…")
    assert last == (text if limit == 12 else "…" + text[len(text) - limit + 1 :])


def test_columns_of_a_grid():
    assert columns("abc") == 3 and columns("你好") == 4 and columns("e\u0301") == 1


def test_as_much_as_fits_is_kept():
    room = [len(fitting("·wonderful", inches, 7)) for inches in (0.1, 0.3, 0.5, 2.0)]
    assert room == sorted(room) and room[0] == 2 and room[-1] == 10 and room[1] < room[2]
    assert len(fitting("wwwwwwwwww", 0.4, 7)) < len(fitting("iiiiiiiiii", 0.4, 7))


def test_tokens_by_their_text():
    tokenizer = words()
    assert token_texts(tokenizer, [1, 3, 4, 98]) == ["<bos>", "a", "b", "id 98"]


def test_tokens_of_a_real_tokenizer_keep_their_space_and_parts_of_characters_are_bytes(demo):
    _, tokenizer = demo
    text = "good day\n你"
    ids = tokenizer(text)["input_ids"]
    found = token_texts(tokenizer, ids)
    assert found[:3] == ["good", " day", "\n"]
    assert "".join(found[3:]).encode().decode("unicode_escape").encode("latin1").decode() == "你"


class Bytes:
    """A byte-level tokenizer's tokens that are no whole characters, and one that is decoded to nothing."""

    names = {5: "Ġð", 6: "aä½", 7: "<pad>", 8: "未"}

    def convert_ids_to_tokens(self, token):
        return self.names[token]

    def decode(self, ids, clean_up_tokenization_spaces):
        return "" if ids[0] == 7 else "\ufffd"


def test_bytes_are_written_only_where_they_are_no_letters():
    assert token_texts(Bytes(), [5, 6, 7, 8]) == [" \\xf0", "a\\xe4\\xbd", "<pad>", "未"]


class SentencePiece:
    """A tokenizer whose decoder drops the first space of what it is given."""

    names = {5: "▁good", 6: "ness", 7: "<0x0A>", 8: "▁"}

    def convert_ids_to_tokens(self, token):
        return self.names[token]

    def decode(self, ids, clean_up_tokenization_spaces):
        assert clean_up_tokenization_spaces is False
        return {5: "good", 6: "ness", 7: "\n", 8: ""}[ids[0]]


def test_the_space_that_sentencepiece_drops_is_kept():
    assert token_texts(SentencePiece(), [5, 6, 7, 8]) == [" good", "ness", "\n", "▁"]


def test_the_prompt_of_a_conversation_is_its_last_message():
    assert prompt_text("a b") == "a b"
    assert prompt_text([{"role": "system", "content": "x"}, {"role": "user", "content": "a b"}]) == "a b"


def test_dollars_and_underscores_are_no_mathematics():
    text = "cost $x_1$ \\frac{a}{b} and $5"
    made = Figure(figsize=(6, 3), layout="constrained")
    axes = made.subplots()
    axes.set_xticks([0, 1], [text, "$"])
    axes.set_yticks([0.0, 0.5])
    axes.plot([0, 1], [0, 0.5], label=text)
    axes.set_title(text, loc="left")
    axes.set_ylabel(text)
    axes.text(0, 0, text)
    axes.legend()
    made.legend()
    heading(made, text)
    finish(made)
    drawn = [said for said, _ in boxes(made)]
    assert drawn.count(text) == 7
    texts = [*axes.texts, axes.yaxis.label, *axes.get_xticklabels(), *made.legends[0].get_texts(), *made.texts]
    assert not any(each.get_parse_math() for each in texts)
    assert not any(each.get_parse_math() for each in axes.get_legend().get_texts())


def test_titles_are_broken_to_the_width():
    text = "a title of some words that goes on and on for a while"
    assert " ".join(lines_of(text, 2.0)) == text and len(lines_of(text, 2.0)) > len(lines_of(text, 5.0)) == 1


def test_text_is_black_on_light_and_white_on_dark():
    assert contrasting("white") == contrasting("#D9D9D9") == "black"
    assert contrasting("black") == contrasting("#053061") == "white"


@pytest.mark.parametrize("limit", [6, 12, 30])
def test_different_names_have_different_labels(limit):
    names = [
        "short",
        *(f"the same beginning {i} and the same end" for i in range(3)),
        *(f"x{'y' * 40}{i}" for i in "ab"),
    ]
    labels = distinct(names, limit)
    assert list(labels) == names and len(set(labels.values())) == len(names)
    assert all(len(label) <= max(limit, 6) for label in labels.values())
    assert distinct(["a", "b"], 10) == {"a": "a", "b": "b"}
