"""An error on the page, in its own words."""

from markupsafe import Markup

from steerfn.output import render


def alert(error: Exception) -> Markup:
    """An error as HTML."""
    return render("board/alert.html.j2", message=str(error))
