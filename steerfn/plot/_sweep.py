"""A sweep as lines, a metric against the strength with intervals, and as a heat map of layers against strengths."""

import re
from typing import Any

import numpy as np

from steerfn import metrics
from steerfn.evaluate import Estimate, Sweep, by_prompt, common, estimate, units_of
from steerfn.output import format_number, quantity
from steerfn.plot._figure import (
    COLOURS,
    DIVERGING,
    GREY,
    LIGHT,
    MARKERS,
    check_result,
    contrasting,
    distinct,
    figure,
    finish,
    heading,
    height_of,
    inches,
    legend,
    lines_of,
    one_axes,
    tidy,
    width_of,
)
from steerfn.values import DataError, Site, public

LINES = 8
RESAMPLES = 1999
"""More would not change a band by a visible amount."""


@public
def sweep(
    table: Sweep,
    metric: str | None = None,
    *,
    groups: Any = None,
    level: float = 0.95,
    ax: Any = None,
    title: str | None = None,
    width: float = 6.0,
) -> Any:
    """A metric against the strength: a line for each vector and choice of sites, the mean over prompts.

    The bands are intervals of the mean over prompts, see `steerfn.evaluate.estimate`; entries of the same prompt count
    once. Means are those of `Sweep.mean`: over the prompts that all configurations share, and gaps where too few of a
    configuration's texts have a number. The unsteered model's mean is dashed, where strength 0 is in the sweep.
    Intervals of two configurations may overlap although their difference on the same prompts is clear:
    `sf.compare_vectors` tests it.

    Args:
        table: from `sf.sweep`.
        metric: one of its metrics; None is the first.
        groups: a label for each prompt of the table, where several belong together: their mean is one unit.
        level: of the intervals.
        ax: an axes of yours to draw in.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        SteerError: not a sweep, or matplotlib or scipy is not installed.
        DataError: a metric that the sweep lacks or that has no number anywhere, or more than eight lines.

    Example:
        >>> import steerfn as sf
        >>> table = sf.sweep(model, tokenizer, prompts, v, [-2, 0, 2], metrics="length", max_new_tokens=3, chat=False)
        >>> sf.plot.sweep(table, "length").savefig("sweep.svg")
    """
    name = metric_of(table, metric, "sweep")
    width = width_of(width, ax)
    lines = curves(table, name, level, groups)
    made, axes = one_axes(width, 4.0, ax)
    numbers = numbers_of(table, name, groups)
    base = unsteered_numbers(table, comparable(numbers))
    if base is not None:
        axes.axhline(finite_mean(base), color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, label="unsteered")
    for i, (label, points) in enumerate(lines.items()):
        alphas = sorted(points)
        means, lows, highs = (
            [getattr(points[alpha], end) for alpha in alphas] for end in ("mean", "low", "high")
        )  # fmt: skip
        axes.fill_between(alphas, lows, highs, color=COLOURS[i], alpha=0.15, linewidth=0)
        axes.plot(alphas, means, color=COLOURS[i], marker=MARKERS[i], markersize=4, linewidth=1.4, label=label)
    if len(alphas := sorted({config.alpha for config in table.configs})) <= 11:
        axes.set_xticks(alphas)
    tidy(axes)
    axes.set_xlabel("Strength alpha", fontsize=9)
    axes.set_ylabel(label_of(table, name), fontsize=9)
    n, unit = numbers.shape[1], "prompt" if groups is None else "group"
    bands = f"; bands: {100 * level:g} % intervals" if n > 1 else ""
    missing = int((~np.isfinite(table.values[name])).sum())
    shared = int(np.isfinite(comparable(numbers)).any(0).sum())
    over = f"{shared} of {n} {unit}s (others have no number somewhere)" if missing else quantity(n, unit)
    gaps = f"; {missing} of {table.values[name].size} numbers missing" if missing else ""
    heading(made, f"{name}: mean over {over}{bands}{gaps}", title=title, axes=ax)
    rows = legend(made, *axes.get_legend_handles_labels(), axes=ax)
    if ax is None:
        made.set_figheight(3.65 + 0.17 * rows)
    return finish(made, ax)


def curves(table: Sweep, metric: str, level: float = 0.95, groups: Any = None) -> dict[str, dict[float, Estimate]]:
    """The estimates of a metric by line (vector and sites) and strength; strengths without a number are gaps.

    Raises:
        DataError: more than eight lines, or a metric that has no number anywhere.
    """
    lines: dict[tuple[str, tuple[str, ...]], dict[float, Estimate]] = {}
    numbers = comparable(numbers_of(table, metric, groups))
    rows = dict.fromkeys((config.vector, config.sites) for config in table.configs)
    if len(rows) > LINES:
        raise DataError(
            f"This sweep has {len(rows)} lines ({rows_shown(rows)}), and more than {LINES} cannot be told apart; use "
            "sf.plot.heat_map(table), or sweep over fewer vectors and sites."
        )
    nothing = Estimate(np.nan, np.nan, np.nan, 0, level)
    for config, row in zip(table.configs, numbers, strict=True):
        known = row[np.isfinite(row)]
        value = estimate(known, level=level, resamples=RESAMPLES) if len(known) else nothing
        lines.setdefault((config.vector, config.sites), {})[config.alpha] = value
    if not any(each.n for points in lines.values() for each in points.values()):
        raise nothing_to_draw(metric)
    names = distinct([vector for vector, _ in lines], 24)
    several = len({sites for _, sites in lines if len(sites) > 1}) > 1  # "3 sites" twice would be one line
    at = {sites: "+".join(sites) if several else place(sites) for _, sites in lines}
    labels = {key: f"{names[key[0]]}, {at[key[1]]}" if len(names) > 1 else at[key[1]] for key in lines}
    return {labels[key]: points for key, points in lines.items()}


def rows_shown(rows: Any) -> str:
    """How many vectors and sites a sweep has."""
    vectors, sites = ({row[i] for row in rows} for i in (0, 1))
    return f"{quantity(len(vectors), 'vector')} x {quantity(len(sites), 'choice of sites')}"


PANELS = 6
FITS = 0.4, 0.15
"""Inches that a number takes, across and down."""


@public
def heat_map(
    table: Sweep, metric: str | None = None, *, ax: Any = None, title: str | None = None, width: float = 6.0
) -> Any:
    """The mean of a metric for every layer and strength, a panel for each vector; deeper layers are higher up.

    Colours diverge around the unsteered model's mean, which is white, where strength 0 is in the sweep; else around the
    middle of the values. The numbers are written where they fit. The best of so many cells is biased upwards:
    `Sweep.best` estimates it on prompts that did not choose it.

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
        DataError: a metric that the sweep lacks or that has no number anywhere, or more than six vectors.

    Example:
        >>> import steerfn as sf
        >>> w = sf.mean_difference(model, tokenizer, happy, sad, sites=[10, 14])
        >>> table = sf.sweep(
        ...     model, tokenizer, prompts, w, [-4, 0, 4], sites=[10, 14], continuations=[" good", " bad"], chat=False
        ... )
        >>> sf.plot.heat_map(table, "propensity").savefig("heat_map.png")
    """
    name = metric_of(table, metric, "heat_map")
    width = width_of(width, ax)
    sites = sorted({config.sites for config in table.configs}, key=depth)
    alphas = sorted({config.alpha for config in table.configs})
    grids = grid(table, name, sites, alphas)
    known = np.concatenate([each[np.isfinite(each)] for each in grids.values()])
    if not len(known):
        raise nothing_to_draw(name)
    if len(grids) > PANELS:
        raise DataError(f"This sweep has {len(grids)} vectors, more than the {PANELS} panels of a figure; draw fewer.")
    base = unsteered_numbers(table, comparable(numbers_of(table, name)))
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
                text = format_number(float(values[row, column]))
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
    over = quantity(n, "prompt") if shared == n else f"{shared} of {n} prompts, which all cells share"
    grey = "" if len(known) == sum(each.size for each in grids.values()) else "; grey: too few texts with a number"
    heading(made, f"{name}: mean over {over}; white: {white}, {format_number(middle)}{grey}", title=title, axes=alone)
    return finish(made, alone)


def grid(table: Sweep, metric: str, sites: list[tuple[str, ...]], alphas: list[float]) -> dict[str, np.ndarray]:
    """The means of a metric by vector, `[sites, alphas]`; NaN where there is no number."""
    grids: dict[str, np.ndarray] = {}
    for config, row in zip(table.configs, comparable(numbers_of(table, metric)), strict=True):
        of = grids.setdefault(config.vector, np.full((len(sites), len(alphas)), np.nan))
        of[sites.index(config.sites), alphas.index(config.alpha)] = finite_mean(row)
    return grids


SCORED = {
    "propensity": "log-odds, nats",
    "share": "probability",
    "accuracy": "fraction",
    "log_prob": "nats",
    "mass": "probability",
}
"""The units of the metrics of a sweep of scores."""


def metric_of(table: Any, metric: str | None, plot: str) -> str:
    """The metric to plot: the one named, or the first.

    Raises:
        SteerError: not a sweep.
        DataError: a metric that the sweep does not have.
    """
    check_result(plot, table, Sweep, "sf.sweep(model, tokenizer, prompts, v, alphas)")
    table.mean(metric)  # raises where the metric is not in the sweep
    return table.metrics[0] if metric is None else metric


def label_of(table: Sweep, metric: str) -> str:
    """A metric's name and unit."""
    if table.texts is None:
        unit = SCORED.get(metric, "")
    else:
        plain = metric.partition("(")[0]  # without options
        unit = metrics.get(plain).unit if plain in metrics.names() else ""
    return f"{metric} ({unit})" if unit else metric


def numbers_of(table: Sweep, metric: str, groups: Any = None) -> np.ndarray:
    """A metric by configuration and different prompt, or group of them, `[configs, units]`; NaN where there is none."""
    units = units_of(table.prompts, groups)
    return np.stack([by_prompt(row, units) for row in table.values[metric]])


def comparable(numbers: np.ndarray) -> np.ndarray:
    """The numbers that may be compared, `[configs, prompts]`; NaN where a mean would cover survivors only."""
    rows, shared = common(numbers)
    return np.where(rows[:, None] & shared, numbers, np.nan)


def unsteered_numbers(table: Sweep, numbers: np.ndarray) -> np.ndarray | None:
    """The unsteered model's numbers by prompt, where they are in the sweep.

    Strength 0 is the unsteered model for `add` and most operators. Where configurations of strength 0 differ it is not,
    as for `clamp`.
    """
    plain = [row for config, row in zip(table.configs, numbers, strict=True) if config.alpha == 0]
    same = bool(plain) and all(np.array_equal(row, plain[0], equal_nan=True) for row in plain)
    return plain[0] if same and np.isfinite(plain[0]).any() else None


def place(sites: tuple[str, ...]) -> str:
    """A short name for the sites of a configuration."""
    return sites[0] if len(sites) == 1 else f"{len(sites)} sites"


def depth(sites: tuple[str, ...]) -> tuple[int, int, int]:
    """The key that sorts the sites of configurations by the depth of the first."""
    first = Site.parse(sites[0])
    return (*first.order, -1 if first.head is None else first.head)


def layer_labels(sites: list[tuple[str, ...]]) -> tuple[list[str], str]:
    """A label for each row of sites, and one for all: only the layers' numbers where nothing else differs."""
    alone = [re.fullmatch(r"(\w+)\[(\d+)\]", each[0]) for each in sites if len(each) == 1]
    kinds = {match[1] for match in alone if match}
    if len(alone) == len(sites) and all(alone) and len(kinds) == 1:
        return [match[2] for match in alone if match], f"Layer ({kinds.pop()}, block index from 0)"
    return [place(each) for each in sites], "Site"


def finite_mean(row: np.ndarray) -> float:
    """The mean of the numbers that are there, NaN where none is."""
    known = row[np.isfinite(row)]
    return float(known.mean()) if len(known) else float("nan")


def nothing_to_draw(metric: str) -> DataError:
    """The error for a metric without any number."""
    return DataError(f"The metric {metric!r} has no finite number in any configuration, so there is nothing to draw.")
