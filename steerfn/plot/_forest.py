"""Forest plots: estimates with their intervals, one under the other, of a comparison of vectors or of a protocol.

Each quantity has a panel, since each has its own scale.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.evaluate import RANDOM, STEERED, UNSTEERED, Estimate, Outcome, Pair, VectorComparison
from steerfn.output import format_number, format_p, percent, quantity
from steerfn.plot._figure import (
    COLOURS,
    GREY,
    MARKERS,
    check_result,
    distinct,
    drawable_text,
    figure,
    finish,
    heading,
    lines_of,
    tidy,
    width_of,
)
from steerfn.values import DataError, public

ROW, PANEL = 0.24, 0.62
"""Inches of a row, and of what a panel needs besides."""


@dataclasses.dataclass(frozen=True)
class ForestRow:
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
    panels: Mapping[str, Sequence[ForestRow]],
    width: float,
    heads: int,
    labels: Mapping[str, str],
    *,
    zero: bool,
    ax: Any = None,
) -> Any:
    """A figure with a panel for each quantity.

    Args:
        heads: how many lines the figure's title has.
        labels: what the axis of a panel shows, by its title; "" leaves it out.
        zero: whether 0 is marked, and always seen.
        ax: the caller's axes, in whose place the panels stand.
    """
    titles = {title: lines_of(title, width - 0.2) for title in panels}
    extra = [0.15 * len(titles[title]) + (0.17 if labels[title] else 0.0) for title in panels]
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
        axes.set_yticks(range(len(rows)), [drawable_text(row.label, letters) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.08)
        axes.xaxis.get_major_locator().set_params(nbins=max(2, int(width - 1)))
        axes.set_title("\n".join(titles[title]), fontsize=9, loc="left", x=0.0)
        if labels[title]:
            axes.set_xlabel(labels[title], fontsize=8)
    return made


def letters_of(width: float) -> int:
    """How long the labels of rows may be in a figure of some inches."""
    return max(18, int(5 * width))


def _draw(axes: Any, place: int, row: ForestRow, narrow: bool) -> None:
    estimate, colour = row.estimate, COLOURS[row.look % len(COLOURS)]
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    if math.isfinite(estimate.mean):
        axes.plot(
            [estimate.mean], [place], marker=MARKERS[row.look % len(MARKERS)], markersize=6, linestyle="none",
            markeredgecolor=colour, markerfacecolor=colour if row.filled else "white", markeredgewidth=1.4, zorder=3,
        )  # fmt: skip
    if row.note:
        note = "\n".join(row.note.rsplit(", ", 1)) if narrow else row.note  # the axis needs the room
        axes.text(
            1.02, place, note, transform=axes.get_yaxis_transform(), va="center", ha="left",
            fontsize=6 if narrow else 7, color="#333333",
        )  # fmt: skip


LOOKS = {"unsteered": 0, "random": 1, "vector": 2}


@public
def comparison(result: VectorComparison, *, ax: Any = None, title: str | None = None, width: float = 6.5) -> Any:
    """Every difference of a comparison with its interval, a panel for each metric.

    A marker is filled where the difference is shown (`Pair.significant`: the p-value after Holm's correction, the
    interval, and enough to carry it), and open where it is not. At the right the p-value after the correction, or why
    there is none; against random vectors it is that of an effect, which needs both comparisons. Differences are
    treatment minus control; 0 is dashed. Colours and shapes tell what a vector was compared with: the unsteered model,
    "random" vectors as long as it, another vector.

    Args:
        result: from `compare_vectors`.
        ax: an axes of yours, from plt.subplots(), in whose place the plot stands.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        SteerError: not a comparison of vectors, or matplotlib is not installed.
        DataError: one without any comparison.

    Example:
        >>> import steerfn as sf
        >>> result = sf.compare_vectors(model, tokenizer, v, prompts, "length", chat=False, max_new_tokens=2)
        >>> sf.plot.comparison(result).savefig("comparison.png")
    """
    call = "sf.compare_vectors(model, tokenizer, {'v1': v1}, prompts, metrics)"
    check_result("comparison", result, VectorComparison, call)
    if not result.pairs:
        raise DataError("This comparison has no pairs, so there is nothing to draw.")
    width = width_of(width, ax)
    by_metric: dict[str, list[Pair]] = {}
    for pair in result.pairs:
        by_metric.setdefault(pair.metric, []).append(pair)
    metrics, letters = distinct(list(by_metric), 60), letters_of(width)
    rooms = {
        "unsteered": letters - 12,
        "random": letters - 9,
        "vector": (letters - 3) // 2,
    }  # beside " − unsteered", ...
    names = {against: distinct(result.vectors, max(6, room)) for against, room in rooms.items()}
    panels = {
        metrics[metric]: [_comparison_row(pair, names[pair.against]) for pair in pairs]
        for metric, pairs in by_metric.items()
    }
    units = {metrics[metric]: result.units.get(metric, "") for metric in by_metric}
    labels = {name: f"Difference ({unit})" if unit else "Difference" for name, unit in units.items()}
    level = percent(result.pairs[0].difference.estimate.level)
    text = (
        f"Differences with {level} intervals. Filled: shown; open: not shown. Circle: from the unsteered model; "
        "square: from random vectors, where p is that of an effect, which needs both; triangle: from another vector. "
        "p after Holm"
    )
    text = text if title is None else title
    made = forest(panels, width, len(lines_of(text, width - 0.2)), labels, zero=True, ax=ax)
    heading(made, text)
    return finish(made)


def _comparison_row(pair: Pair, names: Mapping[str, str]) -> ForestRow:
    p = pair.verdict if pair.n < 2 or not pair.carried else format_p(pair.adjusted)
    control = pair.against if pair.against != "vector" else names[pair.control]
    label = f"{names[pair.treatment]} − {control}"
    return ForestRow(label, pair.difference.estimate, pair.significant, LOOKS[pair.against], f"{p}, n = {pair.n}")


UNITS = {
    "slope": "nats per unit of alpha",
    "spread": "nats per unit of alpha",
    "letter_bias": "nats per unit of alpha",
    "cross_entropy": "nats per token",
    "kl": "nats per token",
    "perplexity": "perplexity",
    "perplexity_ratio": "times the unsteered perplexity",
    "anti_steerable": "share of items",
    "accuracy": "share of questions",
    "probability": "share of prompts",
    "mass": "probability",
    "p_match": "probability",
    "p_match_given_order": "probability",
    "p_first_letter": "probability",
    "p_correct": "probability",
    "mc1": "share of questions",
    "mc2": "probability",
    "mc3": "share of true answers",
    "f1": "F1, 0 to 1",
    "harmful_refused": "share of prompts",
    "harmless_refused": "share of prompts",
    "repetition": "share of n-grams",
    "distinct_n": "share of n-grams",
    "score": "0 to 2",
    "concept": "0 to 2",
    "instruction": "0 to 2",
    "fluency": "0 to 2",
} | {
    f"{way}_{side}_{name}": unit
    for way in ("ablated", "added")
    for side in ("harmful", "harmless")
    for name, unit in (("refused", "share of prompts"), ("log_odds", "nats"), ("kl", "nats"))
}
"""The units of the protocols' figures."""


@public
def outcome(outcome: Outcome, *, ax: Any = None, title: str | None = None, width: float = 6.0) -> Any:
    """Every figure of a protocol with its interval: steered, unsteered and controls, one under the other.

    Each figure has a panel of its own, since they differ in scale. The steered model's marker is filled where its
    paired difference from the unsteered model is shown (`Outcome.is_shown`), and where the protocol compares no such
    difference; it is open where the difference is not shown. The p-value of that difference, after Holm's correction,
    is at the right.

    Args:
        outcome: from `benchmark` or a protocol.
        ax: an axes of yours, from plt.subplots(), in whose place the plot stands.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        SteerError: not an outcome, or matplotlib is not installed.
        DataError: one without any figure.

    Example:
        >>> import steerfn as sf
        >>> outcome = sf.protocols.side_effects(model, tokenizer, v, ["Rain is expected in the north.", "It is late."])
        >>> sf.plot.outcome(outcome).savefig("side_effects.png")
    """
    check_result("outcome", outcome, Outcome, "sf.protocols.benchmark(name, model, tokenizer, v, data)")
    columns = {STEERED: outcome.figures, UNSTEERED: outcome.baseline, **outcome.controls}
    names = dict.fromkeys(name for figures in columns.values() for name in figures)
    if not names:
        raise DataError("This outcome has no figures, so there is nothing to draw.")
    width = width_of(width, ax)
    labels = distinct(list(names), 80)
    panels = {
        labels[name]: [
            _outcome_row(outcome, name, condition, figures[name], look)
            for look, (condition, figures) in enumerate(columns.items())
            if name in figures
        ]
        for name in names
    }
    levels = {percent(figures[name].level) for figures in columns.values() for name in figures}
    texts = [f"{outcome.protocol} ({outcome.source})", f"{', '.join(sorted(levels))} intervals"]
    if any(outcome.effects.get(UNSTEERED, {})):
        texts[1] += ". Open: no difference from unsteered shown"
    if RANDOM in outcome.controls:
        texts[1] += f". random: the mean of {quantity(outcome.draws, 'random vector')}"
    texts = texts if title is None else [title]
    heads = sum(len(lines_of(each, width - 0.2)) for each in texts)
    units = {labels[name]: UNITS.get(name, "") for name in names}
    made = forest(panels, width, heads, units, zero=False, ax=ax)
    heading(made, *texts)
    return finish(made)


def _outcome_row(outcome: Outcome, name: str, condition: str, figure: Estimate, look: int) -> ForestRow:
    compared = condition == STEERED and name in outcome.effects.get(UNSTEERED, {})
    note = f"{format_number(figure.mean)}, n = {figure.n}"
    if not compared:
        return ForestRow(condition, figure, True, look, note)
    return ForestRow(
        condition, figure, outcome.is_shown(name), look, f"{note}, {format_p(outcome.adjusted[UNSTEERED, name])}"
    )
