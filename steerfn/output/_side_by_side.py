"""Two texts beside each other in a terminal, with what differs marked."""

from collections.abc import Iterator, Sequence

from steerfn.output._diff import Run, runs
from steerfn.output._terminal import LEAST, columns
from steerfn.values import visible

GAP = " | "
MARKS = ("[-", "-]"), ("{+", "+}")
"""Around what differs, on the left and on the right, where there are no colours: as in `git diff --word-diff`."""
COLOURS = ("\x1b[33m", "\x1b[0m"), ("\x1b[1;36m", "\x1b[0m")
"""Yellow and bold cyan, which everyone can tell apart."""
BOLD = "\x1b[1m", "\x1b[0m"

_Atom = tuple[str, bool, bool]
"""A word, whether a blank precedes it, and whether it differs."""


def side_by_side(
    rows: Sequence[tuple[str, str, str]], headers: tuple[str, str], *, width: int, colour: bool
) -> list[str]:
    """Rows of a heading and two texts, as lines of two columns that are together no wider than `width`.

    Differences are marked by signs, or by colours.
    """
    column = (max(width, LEAST) - len(GAP)) // 2
    strong, plain = BOLD if colour else ("", "")
    lines = [f"{headers[0]:<{column}}{GAP}{headers[1]}", f"{'-' * column}-+-{'-' * column}"]
    for heading, left, right in rows:
        lines += [f"{strong}{line}{plain}" for line, _ in _wrap_words([(visible(heading), False)], 0, width, False)]
        both = runs(visible(left), visible(right))
        cells = [list(_wrap_words(*each, column, colour)) for each in zip(both, range(2), strict=True)]
        for i in range(max(map(len, cells))):
            (one, used), (other, _) = (cell[i] if i < len(cell) else ("", 0) for cell in cells)
            lines.append(f"{one}{' ' * (column - used)}{GAP}{other}".rstrip())
        lines.append("")
    return lines[:-1] if rows else lines


def wrap_text(text: str, width: int) -> list[str]:
    """A text in lines of at most so many columns, broken between words; white space becomes single blanks."""
    return [line for line, _ in _wrap_words([(text, False)], 0, width, False)] or [""]


def _atoms(pieces: Sequence[Run], marks: tuple[str, str]) -> Iterator[_Atom | None]:
    """The words of a text; None where a line ends. Marks are part of the first and the last word of a difference."""
    blank = False
    for text, changed in pieces:
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if number:
                yield None
                blank = False
            words = line.split()
            for i, word in enumerate(words):
                opens = changed and number == 0 and i == 0
                closes = changed and number == len(lines) - 1 and i == len(words) - 1
                spaced = blank or i > 0 or line[0].isspace()
                yield (marks[0] if opens else "") + word + (marks[1] if closes else ""), spaced, changed
            blank = (blank and not line) or line[-1:].isspace()


def _wrap_words(pieces: Sequence[Run], side: int, width: int, colour: bool) -> Iterator[tuple[str, int]]:
    """The lines of a text in a column, and how wide each is without the colours."""
    line: list[_Atom] = []
    used = 0
    for atom in _atoms(pieces, ("", "") if colour else MARKS[side]):
        if atom is None:
            yield _join_words(line, side, colour), used
            line, used = [], 0
            continue
        word, spaced, changed = atom
        needed = columns(word) + (spaced and bool(line))
        if line and used + needed > width:
            yield _join_words(line, side, colour), used
            line, used, needed = [], 0, columns(word)
        while needed > width:  # longer than a line
            head = _fitting(word, width)
            yield _join_words([(head, False, changed)], side, colour), columns(head)
            word = word[len(head) :]
            needed = columns(word)
        line.append((word, spaced and bool(line), changed))
        used += needed
    if line:
        yield _join_words(line, side, colour), used


def _fitting(word: str, width: int) -> str:
    """The beginning of a word that fits, at least one character."""
    end = 1
    while end < len(word) and columns(word[: end + 1]) <= width:
        end += 1
    return word[:end]


def _join_words(line: Sequence[_Atom], side: int, colour: bool) -> str:
    """The words of a line; colours span the blanks between words that differ."""
    text, lit = "", False
    start, stop = COLOURS[side] if colour else ("", "")
    for word, spaced, changed in line:
        if lit and not changed:
            text += stop
        text += " " if spaced else ""
        if changed and not lit:
            text += start
        text, lit = text + word, changed
    return text + (stop if lit else "")
