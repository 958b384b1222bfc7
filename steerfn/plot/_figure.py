"""What all plots share: a figure of one size and style, made without pyplot, so without a display or global state."""

import math
import textwrap
from typing import Any

from steerfn._errors import DataError, SteerError
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


def figure(width: float = 6.0, height: float = 4.0, ax: Any = None) -> Any:
    """An empty `matplotlib.figure.Figure`, in inches; in the place of an axes, a subfigure.

    Raises:
        SteerError: as `ready`, or an axes that stands in no grid.
    """
    ready(width)
    from matplotlib.figure import Figure

    if ax is None:
        return Figure(figsize=(width, height), dpi=150, layout="constrained")
    spec = checked_axes(ax).get_subplotspec()
    if spec is None:
        raise SteerError(
            "This plot has several panels, and puts them in the place of ax, so ax must stand in a grid: take one from "
            "plt.subplots(), not from add_axes()."
        )
    whole = ax.figure
    root = whole.figure
    if root.get_layout_engine() is None:
        root.set_layout_engine("constrained")  # or titles and labels would lie on the neighbours'
    ax.remove()
    return whole.add_subfigure(spec)


def one_axes(width: float, height: float, ax: Any = None) -> tuple[Any, Any]:
    """A figure with one axes; or the axes that is given, and its figure."""
    if ax is not None:
        return checked_axes(ax).figure, ax
    made = figure(width, height)
    return made, made.subplots()


def checked_axes(ax: Any) -> Any:
    """An axes as it is.

    Raises:
        SteerError: it is none.
    """
    if not hasattr(ax, "get_subplotspec") or not hasattr(ax, "set_title"):
        raise SteerError(f"ax is a matplotlib axes, such as fig, ax = plt.subplots() gives, not {ax!r:.80}.")
    return ax


def width_of(width: Any, ax: Any, least: float = NARROWEST) -> float:
    """How many inches a plot has: those asked for, or those of the axes that it is drawn in."""
    if ax is None:
        ready(width)
        return width
    ready(NARROWEST)
    found = checked_axes(ax).get_window_extent().width / ax.figure.get_dpi()
    return max(least, float(found))


def height_of(ax: Any) -> float:
    """How many inches an axes is high."""
    return ax.get_window_extent().height / ax.figure.get_dpi()


def inches(made: Any) -> tuple[float, float]:
    """The width and height of a figure or subfigure."""
    return made.bbox.width / made.get_dpi(), made.bbox.height / made.get_dpi()


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


def heading(made: Any, *paragraphs: str, title: str | None = None, axes: Any = None) -> int:
    """Put a title over a whole figure, from its left edge; its number of lines.

    Args:
        made: the figure.
        paragraphs: what it says, unless the caller has a title of their own.
        title: the caller's own; an empty one is none.
        axes: where the figure is the caller's, the axes to put it over.
    """
    wide = inches(made)[0] if axes is None else width_of(None, axes)
    said = paragraphs if title is None else (str(title),)
    lines = [line for each in said if each for part in each.split("\n") for line in lines_of(part, wide - 0.2)]
    if axes is not None:
        axes.set_title("\n".join(lines), loc="left", fontsize=9)
    elif lines:
        made.suptitle("\n".join(lines), x=0.1 / wide, ha="left", fontsize=9)
    return len(lines)


def legend(made: Any, handles: Any, labels: Any, axes: Any = None) -> int:
    """A legend below the axes, where no line runs through it, in the columns that the figure has room for; its rows.

    In an axes of the caller's it is inside, since a legend of the figure would stand below other axes too.
    """
    if axes is not None:
        axes.legend(handles, labels, fontsize=7, framealpha=0.8)
        return len(labels)
    columns = int((inches(made)[0] - 0.2) * 15 / (max(map(len, labels)) + 7))
    columns = max(1, min(columns, 4, len(labels)))
    made.legend(handles, labels, frameon=False, fontsize=8, ncols=columns, loc="outside lower center")
    return math.ceil(len(labels) / columns)


def finished(made: Any, only: Any = None) -> Any:
    """The whole figure, with the texts that were drawn taken literally: a token's dollar sign is no mathematics.

    Texts also fall back on installed fonts that know more characters than matplotlib's own.

    Args:
        made: a figure or subfigure of ours, or the caller's figure.
        only: the axes that is ours in the caller's figure.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    texts = [] if only else [*made.texts, *(text for legend in made.legends for text in legend.get_texts())]
    for axes in [only] if only else made.axes:
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
    return made.figure


def contrasting(colour: Any) -> str:
    """Black or white, whichever is read better on a colour: by its relative luminance (WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"
