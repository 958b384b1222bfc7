"""HTML that results are shown in: escaped, self-contained, without scripts, readable in light and dark.

Colours are the reader's own text colour and transparent tints of it, so a part looks right in a notebook of either
kind; only a whole page chooses its background.
"""

import functools
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from steerfn.output._diff import runs
from steerfn.output._numbers import enumeration, format_number, format_or_dash, percent, quantity
from steerfn.values import visible


def render(template: str, **values: object) -> Markup:
    """A template of this package, filled in: the `*.html.j2` and `*.css` that lie beside the code.

    Whatever a template shows is escaped, with its control characters written out, unless it is the HTML of another
    template.

    Args:
        template: its path in the package, such as "output/table.html.j2".
        values: what it shows.
    """
    return Markup(_fill(template, values))


def page(title: str, body: Markup, *, style: str = "") -> str:
    """A whole HTML document.

    Args:
        title: its title, as text.
        body: its contents; a text that is no `Markup` is shown as it is.
        style: CSS beside that which all pages share.
    """
    return _fill("output/page.html.j2", {"title": title, "body": body, "style": Markup(style)}) + "\n"


def part(body: Markup, *, style: str = "") -> str:
    """HTML to stand inside another page, as notebooks show it."""
    return _fill("output/part.html.j2", {"body": body, "style": Markup(style)})


def _fill(template: str, values: Mapping[str, object]) -> str:
    return _templates().get_template(template).render(values)


@functools.cache
def _templates() -> Any:
    # jinja2 comes with torch; only those who look at a page wait for it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("steerfn", "."), autoescape=True, finalize=_readable, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(
        {each.__name__: each for each in (quantity, enumeration, format_or_dash, percent, runs, format_number, visible)}
    )
    return environment


def _readable(value: object) -> object:
    return value if isinstance(value, Markup) else visible(str(value))
