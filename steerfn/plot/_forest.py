"""Estimates with their intervals, one under the other: a panel for each quantity, since each has its own scale."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.evaluate import Estimate
from steerfn.plot._figure import COLOURS, GREY, MARKERS, figure, lines_of, tidy
from steerfn.plot._labels import shown

ROW, PANEL = 0.24, 0.62
"""Inches of a row, and of what a panel needs besides."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a panel.

    Attributes:
        label: what was estimated.
        estimate: its value.
        filled: whether its marker is filled, which says what the figure's title explains.
        look: which colour and marker.
        note: what stands at the right.
    """

    label: str
    estimate: Estimate
    filled: bool = True
    look: int = 0
    note: str = ""


def forest(
    panels: Mapping[str, Sequence[Row]],
    width: float,
    heads: int,
    labels: Mapping[str, str],
    *,
    zero: bool,
    ax: Any = None,
) -> Any:
    """A figure with a panel for each quantity.

    Args:
        panels: its rows by the title of the panel.
        width: of the figure, in inches.
        heads: how many lines the figure's title has.
        labels: what the axis of a panel shows, by its title; "" leaves it out.
        zero: whether 0 is marked, and always seen.
        ax: the caller's axes, in whose place the panels stand.
    """
    said = {title: lines_of(title, width - 0.2) for title in panels}
    extra = [0.15 * len(said[title]) + (0.17 if labels[title] else 0.0) for title in panels]
    parts = [ROW * len(rows) + PANEL - 0.2 + more for rows, more in zip(panels.values(), extra, strict=True)]
    made = figure(width, sum(parts) + 0.2 + 0.16 * heads, ax)
    every = made.subplots(len(panels), 1, squeeze=False, height_ratios=[max(len(rows), 1) for rows in panels.values()])
    letters = letters_of(width)
    for axes, (title, rows) in zip(every[:, 0], panels.items(), strict=True):
        for place, row in enumerate(rows):
            _draw(axes, place, row, narrow=width < 4 and ax is None)
        if zero:
            axes.axvline(0, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        tidy(axes, "x")
        axes.set_yticks(range(len(rows)), [shown(row.label, letters) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.08)
        axes.xaxis.get_major_locator().set_params(nbins=max(2, int(width - 1)))
        axes.set_title("\n".join(said[title]), fontsize=9, loc="left", x=0.0)
        if labels[title]:
            axes.set_xlabel(labels[title], fontsize=8)
    return made


def letters_of(width: float) -> int:
    """How long the labels of rows may be in a figure of some inches."""
    return max(18, int(5 * width))


def _draw(axes: Any, place: int, row: Row, narrow: bool) -> None:
    found, colour = row.estimate, COLOURS[row.look % len(COLOURS)]
    if math.isfinite(found.low) and math.isfinite(found.high):
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    if math.isfinite(found.mean):
        axes.plot(
            [found.mean], [place], marker=MARKERS[row.look % len(MARKERS)], markersize=6, linestyle="none",
            markeredgecolor=colour, markerfacecolor=colour if row.filled else "white", markeredgewidth=1.4, zorder=3,
        )  # fmt: skip
    if row.note:
        note = "\n".join(row.note.rsplit(", ", 1)) if narrow else row.note  # the axis needs the room
        axes.text(
            1.02, place, note, transform=axes.get_yaxis_transform(), va="center", ha="left",
            fontsize=6 if narrow else 7, color="#333333",
        )  # fmt: skip
