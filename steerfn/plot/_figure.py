"""What all plots share: a figure of one size and style, made without pyplot, so without a display or global state."""

import math
import textwrap
from typing import Any

from steerfn._errors import DataError
from steerfn._extra import import_extra
from steerfn.plot._glyphs import families

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Told apart with every kind of colour vision (Okabe and Ito 2008), the last added."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY, LIGHT = "#555555", "#D9D9D9"
DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"
"""Colour maps that every kind of colour vision reads: around a middle, and from nothing up."""
NARROWEST = 3.0
PER_INCH = 13.5
"""Letters of a title in an inch: at 9 points one takes about 0.07."""


def ready(width: Any) -> None:
    """Refuse, before anything is computed, what could not be drawn.

    Raises:
        DataError: a width that is no number, or too narrow for anything to be read.
        SteerError: matplotlib is not installed.
    """
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not NARROWEST <= width < math.inf:
        raise DataError(f"width is a number of inches from {NARROWEST:g}, not {width!r}.")
    import_extra("matplotlib.figure", "plot")  # fail before the work rather than after it


def figure(width: float = 6.0, height: float = 4.0) -> Any:
    """An empty `matplotlib.figure.Figure`, in inches.

    Raises:
        SteerError: as `ready`.
    """
    ready(width)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def tidy(axes: Any, grid: str = "y") -> None:
    """Only what carries data: no box, light lines along one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor="black", labelsize=8)
    axes.grid(axis=grid, color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)


def lines_of(text: str, width: float) -> list[str]:
    """A title's lines, as long as fit into a number of inches."""
    return textwrap.wrap(text, max(12, int(width * PER_INCH))) or [""]


def heading(made: Any, *paragraphs: str) -> int:
    """Put a title over a whole figure, from its left edge; its number of lines."""
    lines = [line for each in paragraphs if each for line in lines_of(each, made.get_size_inches()[0] - 0.2)]
    made.suptitle("\n".join(lines), x=0.1 / made.get_size_inches()[0], ha="left", fontsize=9)
    return len(lines)


def legend(made: Any, handles: Any, labels: Any) -> int:
    """A legend below the axes, where no line runs through it, in the columns that the figure has room for; its rows."""
    columns = int((made.get_size_inches()[0] - 0.2) * 15 / (max(map(len, labels)) + 7))
    columns = max(1, min(columns, 4, len(labels)))
    made.legend(handles, labels, frameon=False, fontsize=8, ncols=columns, loc="outside lower center")
    return math.ceil(len(labels) / columns)


def finished(made: Any) -> Any:
    """The figure with its texts taken literally: a token's dollar sign or underscore is no mathematics.

    Texts also fall back on installed fonts that know more characters than matplotlib's own.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    texts = [*made.texts, *(text for legend in made.legends for text in legend.get_texts())]
    for axes in made.axes:
        texts += [axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            # Labels of numbers are matplotlib's own, and may be mathematics. Those that were given come from a
            # FuncFormatter where their places were given too.
            given = isinstance(axis.get_major_formatter(), (FixedFormatter, FuncFormatter))
            texts += axis.get_ticklabels() if given else []
    for text in texts:
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_fontfamily(families(text.get_fontfamily()[0]))
    return made


def contrasting(colour: Any) -> str:
    """Black or white, whichever is read better on a colour: by its relative luminance (WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"
