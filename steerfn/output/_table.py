"""Tables of texts, for terminals, Markdown and HTML: cells line up whatever the script, and nothing is cut off."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

from markupsafe import Markup

from steerfn.output._page import render
from steerfn.output._sections import Section, escape_markdown, prose
from steerfn.output._side_by_side import wrap_text
from steerfn.output._terminal import Screen, columns
from steerfn.values import visible, visible_line

GAP = 2
"""Columns between two cells."""
WORD = 20
"""A column may be narrower than its longest word only where that is longer than this."""


@dataclasses.dataclass(frozen=True)
class Table(Section):
    """Headers and rows, with what a layout has to know of them.

    Attributes:
        headers: the names of the columns.
        rows: the cells of each row.
        title: what stands above it.
        notes: lines below it.
        numeric: the indices of columns of numbers, which are aligned on the right.
        spare: the indices of columns that a narrow screen does without; a note there says how many.
        long: whether there may be very many rows, of which a notebook shows the first.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    numeric: Collection[int] = ()
    spare: Collection[int] = ()
    long: bool = False

    def text(self, screen: Screen) -> str:
        """In columns. On a person's screen that is too narrow, cells are broken between words; where that does not do,
        the columns stand in several tables below each other.
        """
        lines = [[visible_line(cell) for cell in line] for line in (self.headers, *self.rows)]
        widths = [max(columns(line[i]) for line in lines) for i in range(len(self.headers))]
        kept, notes = list(range(len(widths))), [*self.notes]
        if self.spare and _total(widths) > screen.width:
            kept = [i for i in kept if i not in self.spare]
            notes.append(f"(a wider terminal shows {len(self.spare)} further columns)")
        groups = [kept]
        if screen.wraps:
            least = [min(widths[i], max(_longest_word(line[i]) for line in lines)) for i in range(len(widths))]
            if _total([least[i] for i in kept]) > screen.width:
                groups = _split(kept, widths, screen.width)
            for group in groups:
                _narrow(widths, least, group, screen.width)
        tables = ["\n".join(self._laid_out(lines, group, widths)) for group in groups]
        head = prose(self.title, screen) if self.title else []
        return "\n".join([*head, "\n\n".join(tables), *(each for note in notes for each in prose(note, screen))])

    def _laid_out(self, lines: Sequence[Sequence[str]], group: Sequence[int], widths: Sequence[int]) -> Iterator[str]:
        for line in lines:
            cells = [[line[i]] if columns(line[i]) <= widths[i] else wrap_text(line[i], widths[i]) for i in group]
            for n in range(max(map(len, cells))):
                row = zip(group, (cell[n] if n < len(cell) else "" for cell in cells), strict=True)
                yield (" " * GAP).join(_pad_cell(text, widths[i], i in self.numeric) for i, text in row).rstrip()

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [
            f"| {' | '.join(escape_markdown(visible(cell)) for cell in line)} |" for line in (self.headers, *self.rows)
        ]
        rule = "".join("---:|" if i in self.numeric else "---|" for i in range(len(self.headers)))
        head = [f"## {escape_markdown(visible(self.title))}\n"] if self.title else []
        return "\n".join(
            [*head, lines[0], f"|{rule}", *lines[1:], *(f"\n{escape_markdown(visible(note))}" for note in self.notes)]
        )

    def html(self, max_rows: int | None = None) -> Markup:
        """The table in HTML; of a long one at most `max_rows` rows, and how many more there are."""
        rows = self.rows[:max_rows] if self.long else self.rows
        left_out = [f"... and {len(self.rows) - len(rows)} more"] if len(rows) < len(self.rows) else []
        return render(
            "output/table.html.j2", title=self.title, headers=self.headers, rows=rows, numeric=self.numeric,
            notes=[*left_out, *self.notes],
        )  # fmt: skip


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _longest_word(cell: str) -> int:
    return min(WORD, max(map(columns, cell.split()), default=0))


def _pad_cell(text: str, width: int, numeric: bool) -> str:
    blanks = " " * (width - columns(text))
    return blanks + text if numeric else text + blanks


def _split(kept: Sequence[int], widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns in groups that fit; the first column, which names the rows, stands in each."""
    first, *others = kept
    groups = [[first]]
    for i in others:
        if len(groups[-1]) > 1 and _total([widths[j] for j in (*groups[-1], i)]) > width:
            groups.append([first])
        groups[-1].append(i)
    return groups


def _narrow(widths: list[int], least: Sequence[int], group: Sequence[int], width: int) -> None:
    """Take what is too much from the widest columns, down to their longest words."""
    while _total([widths[i] for i in group]) > width:
        wide = [i for i in group if widths[i] > least[i]]
        if not wide:
            return
        widths[max(wide, key=lambda i: widths[i])] -= 1
