"""HTML that results are shown in: escaped, self-contained, without scripts, readable in light and dark.

Colours are the reader's own text colour and transparent tints of it, so a part looks right in a notebook of either
kind; only a whole page chooses its background.
"""

import html
from collections.abc import Collection, Sequence

STYLE = """
.steerfn { font: 15px/1.5 system-ui, sans-serif; }
.steerfn h1 { font-size: 1.5em; margin: 0 0 .6em; }
.steerfn h2 { font-size: 1.15em; margin: 1.6em 0 .5em; }
.steerfn h3 { font-size: 1em; margin: 1.2em 0 .4em; }
.steerfn p { margin: .4em 0; max-width: 75em; }
.steerfn .scroll { overflow-x: auto; }
.steerfn table { border-collapse: collapse; margin: .5em 0 1em; font-size: .95em; color: inherit; }
.steerfn th, .steerfn td { border-bottom: 1px solid rgba(128, 128, 128, .35); padding: .35em .65em; text-align: left;
  vertical-align: top; background: transparent; color: inherit; overflow-wrap: anywhere; min-width: 5.5em; }
.steerfn th { border-bottom: 2px solid rgba(128, 128, 128, .6); white-space: nowrap; }
.steerfn td.number, .steerfn th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
  min-width: 0; }
.steerfn pre { white-space: pre-wrap; overflow-wrap: anywhere; background: rgba(128, 128, 128, .12);
  padding: .6em .8em; border-radius: 4px; font-size: .88em; color: inherit; }
.steerfn code { overflow-wrap: anywhere; }
.steerfn .muted { opacity: .72; }
.steerfn img, .steerfn svg { max-width: 100%; height: auto; }
"""
PAGE = """
:root { color-scheme: light dark; }
body { margin: 0; background: #ffffff; color: #1b1f24; }
main.steerfn { max-width: 80em; margin: 0 auto; padding: 1.5em; }
a { color: #0b5cad; }
@media (prefers-color-scheme: dark) {
  body { background: #14171a; color: #e4e7eb; }
  a { color: #7db8ff; }
}
@media print { main.steerfn { max-width: none; padding: 0; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for a page: nothing but what is in it. A text that slipped through could run nothing."""


def page(title: str, body: str, *, style: str = "") -> str:
    """A whole HTML document.

    Args:
        title: its title, as text.
        body: its contents, as HTML: whatever comes from a model or a user is escaped already.
        style: CSS beside that which all pages share.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{PAGE}{style}</style>\n</head>\n"
        f'<body>\n<main class="steerfn">\n{body}\n</main>\n</body>\n</html>\n'
    )


def part(body: str, *, style: str = "") -> str:
    """HTML to stand inside another page, as notebooks show it."""
    return f'<div class="steerfn"><style>{STYLE}{style}</style>\n{body}\n</div>'


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, numeric: Collection[int] = ()) -> str:
    """An HTML table of texts.

    Args:
        headers: the names of the columns.
        rows: the cells, of which the text is shown, escaped.
        numeric: the indices of columns of numbers, which are aligned on the right.
    """

    def line(cells: Sequence[object], tag: str) -> str:
        kinds = (' class="number"' if i in numeric else "" for i in range(len(cells)))
        shown = (f"<{tag}{kind}>{html.escape(str(cell))}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    head = line(headers, "th")
    return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
