"""Two columns in a terminal: nothing wider than it, every word there, differences marked."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerfn.output import _terminal
from steerfn.output._side_by_side import side_by_side
from steerfn.output._terminal import columns, in_colour, printable
from steerfn.run._text import shown_prompt
from steerfn.values._visible import visible

ESCAPE = re.compile("\x1b\\[[0-9;]*m")
TEXTS = st.text(st.sampled_from("abcdefg   \n\t,.日本語\x1b\u0301"), max_size=120)


def shown(left, right, width=60, colour=False, heading="1. h"):
    return side_by_side([(heading, left, right)], ("before", "after"), width=width, colour=colour)


def column(lines, side, width=60):
    """The text of one column, for texts without wide characters."""
    cut = (width - 3) // 2
    cells = [line[:cut] if side == 0 else line[cut + 3 :] for line in lines[3:]]
    return [cell.rstrip() for cell in cells]


@given(TEXTS, TEXTS, st.sampled_from([60, 61, 97]), st.booleans())
def test_no_line_is_wider_than_the_terminal_and_no_text_is_lost(left, right, width, colour):
    lines = shown(left, right, width, colour, heading=left)
    plain = [ESCAPE.sub("", line) for line in lines]
    assert all(columns(line) <= width for line in plain)
    assert all("\x1b" not in line for line in plain)
    cut = (width - 3) // 2
    bars = [line for line in plain if " | " in line or line.endswith(" |")]
    assert bars[0] == f"{'before':<{cut}} | after"
    together = "".join("".join(plain).split())
    for word in f"{left} {right}".split():
        assert word in together or not re.fullmatch("[a-g]{1,9}", word)


def test_two_texts_in_two_columns_with_signs_around_what_differs():
    left, right = "I had a great day at the beach", "I had a terrible day at the beach"
    assert shown(left, right) == [
        "before                       | after",
        "-----------------------------+-----------------------------",
        "1. h",
        "I had a [-great-] day at the | I had a {+terrible+} day at",
        "beach                        | the beach",
    ]


def test_colours_stand_for_the_signs_and_span_the_blanks_between_words():
    lines = shown("so it was good", "so it is very bad", colour=True)
    assert lines[2] == "\x1b[1m1. h\x1b[0m"
    assert lines[3] == f"so it \x1b[33mwas good\x1b[0m{' ' * 14} | so it \x1b[1;36mis very bad\x1b[0m"


def test_lines_and_paragraphs_of_a_text_stay():
    lines = shown("- one\n- two\n\nEnd", "- one\n- three\n\nEnd")
    assert column(lines, 0) == ["- one", "- [-two-]", "", "End"]
    assert column(lines, 1) == ["- one", "- {+three+}", "", "End"]


def test_a_word_longer_than_the_column_is_broken():
    word = "x" * 70
    assert "".join(column(shown(word, "y"), 0)) == f"[-{word}-]"


def test_wide_and_combining_characters_take_the_columns_they_take():
    assert columns("日本") == 4 and columns("e\u0301") == 1 and columns("a\u200db") == 2
    lines = shown("日本語" * 12, "日本語" * 12)
    assert [columns(line.split(" | ")[0]) for line in lines[3:]] == [28, 28, 28] and len(lines) == 6
    assert [line.split(" | ")[1] for line in lines[3:]] == [
        "日本語" * 4 + "日本",
        "語" + "日本語" * 4 + "日",
        "本語日本語日本語",
    ]


def test_a_text_cannot_move_the_cursor_or_turn_the_line_around():
    assert visible("a\x1b[2Jb\x07\u202ec\ud800\td\n") == "a\\x1b[2Jb\\x07\\u202ec\\ud800\td\n"
    assert visible("שלום émoji 👩\u200d🚀") == "שלום émoji 👩\u200d🚀"
    assert "\x1b" not in "".join(shown("a\x1b[2J", "b\x1b]0;x\x07", heading="\x1b[31m"))


def test_a_conversation_is_told_as_who_says_what():
    assert shown_prompt("a\n b") == "a b"
    assert shown_prompt([{"role": "user", "content": "Hi\nyou"}, {"role": "assistant", "content": "Oh"}]) == (
        "user: Hi you / assistant: Oh"
    )


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals_of_those_who_want_them(monkeypatch, terminal, environment, expected):
    monkeypatch.setattr(_terminal.sys.stdout, "isatty", lambda: terminal, raising=False)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert in_colour() is expected


def test_an_old_console_shows_a_question_mark(monkeypatch):
    class Old:
        encoding = "ascii"

    monkeypatch.setattr(_terminal.sys, "stdout", Old())
    assert printable("é ok") == "? ok"
