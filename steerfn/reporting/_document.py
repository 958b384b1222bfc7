"""The document: verdict first, then the sections in order, on one page that loads nothing."""

import html
from collections.abc import Callable

from steerfn._page import page
from steerfn.evaluate._comparison_html import STYLE as TEXTS
from steerfn.reporting._about_effect import controls, effect, examples, side_effects
from steerfn.reporting._about_use import how_to_repeat_it, signatures, what_it_does_not_show
from steerfn.reporting._about_vector import how_it_was_made, how_well_it_separates, what_it_is
from steerfn.reporting._findings import Findings
from steerfn.reporting._style import STYLE
from steerfn.reporting._text import items

SECTIONS: tuple[tuple[str, str, Callable[[Findings], str]], ...] = (
    ("vector", "What the vector is", what_it_is),
    ("made", "How it was made", how_it_was_made),
    ("quality", "How well it tells the data apart", how_well_it_separates),
    ("effect", "What it does", effect),
    ("costs", "Side effects", side_effects),
    ("controls", "Controls", controls),
    ("examples", "Examples", examples),
    ("limits", "What this does not show", what_it_does_not_show),
    ("repeat", "Hashes, and how to repeat it", how_to_repeat_it),
    ("sign", "Signatures", lambda _: signatures()),
)
"""Anchor, heading and content of every section."""


def document(found: Findings) -> str:
    """A report as HTML."""
    verdict = found.verdict
    listed = "\n".join(f'<li><a href="#{anchor}">{heading}</a></li>' for anchor, heading, _ in SECTIONS)
    parts = [
        f"<h1>{html.escape(found.title)}</h1>",
        f'<p class="muted">{html.escape(found.model["name"])} · {html.escape(found.written)} · '
        f"steerfn {html.escape(found.about['versions']['steerfn'])}</p>",
        f'<section class="verdict {verdict.level.replace(" ", "-")}" id="verdict"><h2>Verdict</h2>\n'
        f'<p class="headline">{html.escape(verdict.headline)}</p>\n{items(verdict.reasons)}\n</section>',
        f'<nav aria-label="Contents"><ol>\n{listed}\n</ol></nav>',
    ]
    parts += [
        f'<section id="{anchor}"><h2>{number} {heading}</h2>\n{content(found)}\n</section>'
        for number, (anchor, heading, content) in enumerate(SECTIONS, 1)
    ]
    return page(found.title, "\n".join(parts), style=TEXTS + STYLE)
