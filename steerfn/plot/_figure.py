"""What all plots share: a figure of one size and style, made without pyplot, so without a display or global state."""

from typing import Any

from steerfn._errors import SteerError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart with every kind of colour vision (Okabe and Ito 2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY, LIGHT = "#555555", "#D9D9D9"


def figure(width: float = 6.0, height: float = 4.0) -> Any:
    """An empty `matplotlib.figure.Figure`, in inches.

    Raises:
        SteerError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SteerError('Plots need matplotlib, which is not installed: pip install "steerfn[plot]".') from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def tidy(axes: Any) -> None:
    """Only what carries data: no box, light horizontal lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor="black", labelsize=8)
    axes.grid(axis="y", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
