"""Figures on the page: pictures that it holds in itself, each with a text for those who do not see it."""

from typing import Any

from markupsafe import Markup

from steerfn.output import render
from steerfn.plot import data_url


def picture(figure: Any, alt: str) -> Markup:
    """A figure as HTML.

    Args:
        figure: a `matplotlib.figure.Figure`.
        alt: what it shows, in a sentence.
    """
    return render("board/picture.html.j2", url=data_url(figure, transparent=True), alt=alt)
