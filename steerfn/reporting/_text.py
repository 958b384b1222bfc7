"""Pieces of a page made of text that may come from anyone: shortened, escaped, control characters written out."""

import html
from collections.abc import Iterable, Sequence

from steerfn._visible import visible

LONGEST = 400
"""Characters of one value shown."""


def clear(text: str, longest: int = LONGEST) -> str:
    """A text with its control characters written out, cut where it is too long to be read."""
    text = visible(text)
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def paragraph(text: str, strong: bool = False) -> str:
    """A paragraph; a strong one is what must not be overlooked."""
    shown = html.escape(visible(text))
    return f'<p class="warning">{shown}</p>' if strong else f"<p>{shown}</p>"


def items(texts: Iterable[str]) -> str:
    """A list."""
    return "<ul>\n" + "\n".join(f"<li>{html.escape(visible(text))}</li>" for text in texts) + "\n</ul>"


def pairs_of(rows: Sequence[tuple[str, object]]) -> str:
    """Names and values, one below the other."""
    lines = (
        f'<tr><th scope="row">{html.escape(clear(name, 60))}</th><td>{html.escape(clear(str(value)))}</td></tr>'
        for name, value in rows
    )
    return '<table class="facts">\n' + "\n".join(lines) + "\n</table>"
