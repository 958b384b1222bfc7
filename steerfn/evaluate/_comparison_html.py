"""A comparison with and without steering as HTML: differences are marked, whatever a model wrote is escaped."""

import html
from collections.abc import Sequence

from steerfn._page import table
from steerfn._visible import visible
from steerfn.evaluate._diff import Run, runs
from steerfn.evaluate._vector_tables import Table

# Orange and blue: told apart without red and green, and legible as tints of a light and of a dark ground.
STYLE = """
.steerfn .texts { width: 100%; table-layout: fixed; }
.steerfn .texts th:first-child { width: 22%; }
.steerfn .texts td { white-space: pre-wrap; unicode-bidi: plaintext; }
.steerfn del, .steerfn ins { text-decoration: none; border-radius: 2px; padding: 0 .1em; }
.steerfn del { background: rgba(230, 140, 20, .28); }
.steerfn ins { background: rgba(40, 130, 230, .26); box-shadow: inset 0 -2px rgba(40, 130, 230, .7); }
@media (max-width: 40em) {
  .steerfn .texts, .steerfn .texts tbody, .steerfn .texts tr, .steerfn .texts td { display: block; width: auto; }
  .steerfn .texts thead { display: none; }
  .steerfn .texts td { border: 0; padding: .25em 0; }
  .steerfn .texts td[data-side]::before { content: attr(data-side) ": "; opacity: .72; }
  .steerfn .texts tr { border-bottom: 1px solid rgba(128, 128, 128, .35); padding: .5em 0; }
  .steerfn .texts td:first-child { font-weight: 600; }
}
"""
"""What the parts below need beside the style that all pages share."""


def body(
    head: str, summary: Sequence[str], numbers: Table, rows: Sequence[tuple[str, str, str]], max_rows: int | None
) -> str:
    """The whole comparison, without the page around it.

    Args:
        head: what was compared.
        summary: the sentences.
        numbers: the table of metrics.
        rows: a heading and the texts before and after.
        max_rows: how many of them to show; None shows all.
    """
    headers, cells = numbers
    said = "\n".join(f"<li>{html.escape(line)}</li>" for line in summary)
    return "\n".join(
        [
            "<h1>With and without steering</h1>",
            f'<p class="muted">{html.escape(head)}</p>',
            f"<ul>\n{said}\n</ul>",
            table(headers, cells, numeric=range(2, len(headers))),
            "<h2>Texts</h2>",
            texts(rows, max_rows),
        ]
    )


def texts(rows: Sequence[tuple[str, str, str]], max_rows: int | None = None) -> str:
    """Texts side by side, with what differs marked; needs `STYLE`.

    Args:
        rows: a heading and the texts before and after.
        max_rows: how many of them to show; None shows all.
    """
    shown = rows[:max_rows]
    lines = []
    for heading, before, after in shown:
        left, right = runs(visible(before), visible(after))
        lines.append(
            f'<tr><td>{html.escape(visible(heading))}</td><td data-side="unsteered">{_marked(left, "del")}</td>'
            f'<td data-side="steered">{_marked(right, "ins")}</td></tr>'
        )
    left_out = len(rows) - len(shown)
    more = f'<p class="muted">... and {left_out} more</p>' if left_out else ""
    columns = "<th>prompt</th><th>unsteered</th><th>steered</th>"
    return (
        f'<table class="texts">\n<thead><tr>{columns}</tr></thead>\n<tbody>\n' + "\n".join(lines) + "\n</tbody>\n"
        f"</table>\n{more}"
    )


def _marked(pieces: Sequence[Run], tag: str) -> str:
    """A text with its differences in an element of their own."""
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" if changed else html.escape(text) for text, changed in pieces)
