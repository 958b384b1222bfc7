"""A sweep as a heat map: layers against strengths."""

from typing import Any

import numpy as np

from steerfn._errors import DataError
from steerfn.evaluate._shown import shown as digits
from steerfn.plot._figure import (
    DIVERGING,
    LIGHT,
    contrasting,
    figure,
    finished,
    heading,
    height_of,
    inches,
    lines_of,
    width_of,
)
from steerfn.plot._labels import distinct
from steerfn.plot._swept import (
    checked,
    comparable,
    depth,
    finite_mean,
    label_of,
    layer_labels,
    nothing_to_draw,
    numbers_of,
    unsteered,
)
from steerfn.sweeping._table import Sweep

PANELS = 6
FITS = 0.4, 0.15
"""Inches that a number takes, across and down."""


def heat_map(
    table: Sweep, metric: str | None = None, *, ax: Any = None, title: str | None = None, width: float = 6.0
) -> Any:
    """The mean of a metric for every layer and strength, a panel for each vector; deeper layers are higher up.

    Colours diverge around the unsteered model's mean, which is white, where strength 0 is in the sweep; else around the
    middle of the values. The numbers are written where they fit. The best of so many cells is too good:
    `Sweep.best` says what it is worth on prompts that did not choose it.

    Args:
        table: from `sf.sweep`.
        metric: one of its metrics; None is the first.
        ax: an axes of yours to draw in; several vectors stand in its place, as panels.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        SteerError: not a sweep, or matplotlib is not installed.
        DataError: a metric that the sweep lacks or that is no number anywhere, or more than six vectors.

    Example:
        >>> import steerfn as sf
        >>> table = sf.sweep(
        ...     model, tokenizer, prompts, v, [-4, 0, 4], sites=range(30), continuations=[" good", " bad"]
        ... )  # doctest: +SKIP
        >>> sf.plot.heat_map(table, "propensity")  # doctest: +SKIP
    """
    name = checked(table, metric, "heat_map")
    width = width_of(width, ax)
    sites = sorted({config.sites for config in table.configs}, key=depth)
    alphas = sorted({config.alpha for config in table.configs})
    grids = grid(table, name, sites, alphas)
    known = np.concatenate([each[np.isfinite(each)] for each in grids.values()])
    if not len(known):
        raise nothing_to_draw(name)
    if len(grids) > PANELS:
        raise DataError(f"This sweep has {len(grids)} vectors, more than the {PANELS} panels of a figure; draw fewer.")
    base = unsteered(table, comparable(numbers_of(table, name)))
    middle = float((known.max() + known.min()) / 2) if base is None else finite_mean(base)
    wide = float(np.abs(known - middle).max()) or 1.0
    high = min(max(0.28 * len(sites), 0.8), max(9.0 / len(grids), 2.5))
    alone = ax if len(grids) == 1 else None
    if alone is None:
        made = figure(width, high * len(grids) + 1.3, ax)
        panels = made.subplots(len(grids), 1, sharex=True, squeeze=False)[:, 0]
    else:
        made, panels = alone.figure, np.array([alone])
    if ax is not None:
        high = max(0.5, (inches(made)[1] - 1.3) / len(grids)) if alone is None else max(0.5, height_of(alone))
    names = distinct(list(grids), int(10 * width))
    labels, rows = layer_labels(sites)
    cell = (width - 1.9) / len(alphas), (high - 0.2 * (len(grids) > 1)) / len(sites)
    for axes, (vector, values) in zip(panels, grids.items(), strict=True):
        drawn = axes.pcolormesh(
            np.arange(len(alphas) + 1) - 0.5, np.arange(len(sites) + 1) - 0.5, np.ma.masked_invalid(values),
            cmap=DIVERGING, vmin=middle - wide, vmax=middle + wide, edgecolors="white", linewidth=0.6,
        )  # fmt: skip
        axes.set_facecolor(LIGHT)  # where there is no number
        for row, column in np.ndindex(values.shape):
            if cell[0] >= FITS[0] and cell[1] >= FITS[1] and np.isfinite(values[row, column]):
                colour = contrasting(drawn.cmap(drawn.norm(values[row, column])))
                text = digits(float(values[row, column]))
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=8)
        every = max(1, int(np.ceil(0.16 / cell[1])))
        axes.set_yticks(range(0, len(sites), every), labels[::every])
        axes.set_ylabel("\n".join(lines_of(rows, high)), fontsize=9)
        if len(grids) > 1:
            axes.set_title(names[vector], fontsize=9, loc="left")
    strengths = [f"{alpha:g}" for alpha in alphas]
    few = max(1, int(np.ceil((0.1 + 0.07 * max(map(len, strengths))) / cell[0])))
    panels[-1].set_xticks(range(0, len(alphas), few), strengths[::few])
    panels[-1].set_xlabel("Strength alpha", fontsize=9)
    bar = made.colorbar(panels[-1].collections[0], ax=list(panels), fraction=0.05, pad=0.02, aspect=25)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    bar.set_label(label_of(table, name), fontsize=9)
    n = len({repr(prompt) for prompt in table.prompts})
    white = "the middle of the values" if base is None else "unsteered"
    shared = int(np.isfinite(comparable(numbers_of(table, name))).any(0).sum())
    over = f"{n} prompt{'s' * (n > 1)}" if shared == n else f"{shared} of {n} prompts, which all cells share"
    grey = "" if len(known) == sum(each.size for each in grids.values()) else "; grey: too few texts with a number"
    heading(made, f"{name}: mean over {over}; white: {white}, {digits(middle)}{grey}", title=title, axes=alone)
    return finished(made, alone)


def grid(table: Sweep, metric: str, sites: list[tuple[str, ...]], alphas: list[float]) -> dict[str, np.ndarray]:
    """The means of a metric by vector, `[sites, alphas]`; NaN where there is no number."""
    found: dict[str, np.ndarray] = {}
    for config, row in zip(table.configs, comparable(numbers_of(table, metric)), strict=True):
        of = found.setdefault(config.vector, np.full((len(sites), len(alphas)), np.nan))
        of[sites.index(config.sites), alphas.index(config.alpha)] = finite_mean(row)
    return found
