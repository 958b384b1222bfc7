"""A sweep as lines: a metric against the strength, with intervals."""

from typing import Any

import numpy as np

from steerfn._errors import DataError
from steerfn.evaluate import Estimate, estimate
from steerfn.plot._figure import COLOURS, GREY, MARKERS, finished, heading, legend, one_axes, tidy, width_of
from steerfn.plot._labels import distinct
from steerfn.plot._swept import (
    checked,
    comparable,
    finite_mean,
    label_of,
    nothing_to_draw,
    numbers_of,
    place,
    unsteered,
)
from steerfn.sweeping._table import Sweep

LINES = 8
RESAMPLES = 1999
"""Enough for what an eye can tell."""


def sweep(
    table: Sweep,
    metric: str | None = None,
    *,
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
        level: of the intervals.
        ax: an axes of yours to draw in.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        SteerError: not a sweep, or matplotlib or scipy is not installed.
        DataError: a metric that the sweep lacks or that is no number anywhere, or more than eight lines.

    Example:
        >>> import steerfn as sf
        >>> table = sf.sweep(model, tokenizer, prompts, v, [-2, 0, 2], sites=[10, 14])  # doctest: +SKIP
        >>> sf.plot.sweep(table, "length").savefig("sweep.svg")  # doctest: +SKIP
    """
    name = checked(table, metric, "sweep")
    width = width_of(width, ax)
    lines = curves(table, name, level)
    made, axes = one_axes(width, 4.0, ax)
    base = unsteered(table, comparable(numbers_of(table, name)))
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
    n = len({repr(prompt) for prompt in table.prompts})
    bands = f"; bands: {100 * level:g} % intervals" if n > 1 else ""
    missing = int((~np.isfinite(table.values[name])).sum())
    shared = int(np.isfinite(comparable(numbers_of(table, name))).any(0).sum())
    over = f"{shared} of {n} prompts (others have no number somewhere)" if missing else f"{n} prompt{'s' * (n > 1)}"
    gaps = f"; {missing} of {table.values[name].size} numbers missing" if missing else ""
    heading(made, f"{name}: mean over {over}{bands}{gaps}", title=title, axes=ax)
    rows = legend(made, *axes.get_legend_handles_labels(), axes=ax)
    if ax is None:
        made.set_figheight(3.65 + 0.17 * rows)
    return finished(made, ax)


def curves(table: Sweep, metric: str, level: float = 0.95) -> dict[str, dict[float, Estimate]]:
    """The estimates of a metric by line (vector and sites) and strength; strengths without a number are gaps.

    Raises:
        DataError: more than eight lines, or a metric that is no number anywhere.
    """
    found: dict[tuple[str, tuple[str, ...]], dict[float, Estimate]] = {}
    numbers = comparable(numbers_of(table, metric))
    rows = dict.fromkeys((config.vector, config.sites) for config in table.configs)
    if len(rows) > LINES:
        raise DataError(
            f"This sweep has {len(rows)} lines ({rows_shown(rows)}), more than {LINES} are not told apart; use "
            "sf.plot.heat_map(table), or sweep over fewer vectors and sites."
        )
    nothing = Estimate(np.nan, np.nan, np.nan, 0, level)
    for config, row in zip(table.configs, numbers, strict=True):
        known = row[np.isfinite(row)]
        value = estimate(known, level=level, resamples=RESAMPLES) if len(known) else nothing
        found.setdefault((config.vector, config.sites), {})[config.alpha] = value
    if not any(each.n for points in found.values() for each in points.values()):
        raise nothing_to_draw(metric)
    names = distinct([vector for vector, _ in found], 24)
    several = len({sites for _, sites in found if len(sites) > 1}) > 1  # "3 sites" twice would be one line
    at = {sites: "+".join(sites) if several else place(sites) for _, sites in found}
    labels = {key: f"{names[key[0]]}, {at[key[1]]}" if len(names) > 1 else at[key[1]] for key in found}
    return {labels[key]: points for key, points in found.items()}


def rows_shown(rows: Any) -> str:
    """How many vectors and sites a sweep has."""
    vectors, sites = ({row[i] for row in rows} for i in (0, 1))
    return f"{len(vectors)} vector{'s' * (len(vectors) > 1)} x {len(sites)} choice{'s' * (len(sites) > 1)} of sites"
