"""Figures inside a page: as SVG in the address of an image, so that nothing is loaded and nothing in it can run."""

import base64
import html
import io
from typing import Any


def picture(figure: Any, caption: str, alt: str) -> str:
    """An HTML figure.

    Args:
        figure: a `matplotlib.figure.Figure`.
        caption: what stands below it.
        alt: what it shows, for those who cannot see it.
    """
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
