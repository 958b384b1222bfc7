"""Positive and negative texts along a direction and in the plane of their principal components."""

from typing import Any

import numpy as np

from steerfn._chat_template import Chat
from steerfn._text import as_texts
from steerfn._vector import SteeringVector
from steerfn.plot._figure import COLOURS, MARKERS, figure, finished, heading, height_of, legend, tidy, width_of
from steerfn.plot._separated import Separated, separated
from steerfn.reading import Position

SIDES = ("positive", "negative")
WIDE = 5.5
"""Inches from which two panels stand side by side."""


def separation(
    model: Any,
    tokenizer: Any,
    positive: Any,
    negative: Any,
    v: SteeringVector | None = None,
    *,
    site: Any = None,
    position: Position = "last",
    chat: Chat = False,
    batch_size: int | str = "auto",
    progress: bool = True,
    ax: Any = None,
    title: str | None = None,
    width: float = 8.0,
) -> Any:
    """How well a direction tells two sides of texts apart, and whether they differ in other ways more.

    First panel: histograms of `<h, v / |v|>`, with a tick for each text and a line at each mean; the title gives the
    AUC (the chance that a positive text lies further along than a negative one) and Cohen's d. Second panel: all texts
    in the plane of their first two principal components around the common mean, with the direction as an arrow, as
    long as the part of it that lies in the plane (1 would be the dotted circle). Signs are such that the positives lie
    to the right.

    Without a vector the direction is the difference of the means of these same texts. Such a direction, and any vector
    that was made of them, separates them too well: pass texts that it was not made of, or see `layer_profile`.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour.
        negative: texts that show its opposite; as many or not.
        v: a vector.
        site: where to read, an int means `resid_post`; None is the vector's only site.
        position: the token to read, as in `activations`.
        chat: True puts texts into the chat template; None does so where there is one.
        batch_size: texts at once.
        progress: show a progress bar on stderr.
        ax: an axes of yours, from plt.subplots(), in whose place the plot stands.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        DataError: no texts on one side, or an empty one.
        SiteError: no site or several, or one that the vector or the model lacks.
        SteerError: not a vector, or matplotlib is not installed.

    Example:
        >>> import steerfn as sf
        >>> sf.plot.separation(model, tokenizer, happy, sad, v)  # doctest: +SKIP
    """
    sides = as_texts(positive, "positive"), as_texts(negative, "negative")
    width = width_of(width, ax)
    found = separated(
        model, tokenizer, *sides, v, site, position=position, chat=chat, batch_size=batch_size, progress=progress
    )
    beside = width >= WIDE if ax is None else width > height_of(ax)
    made = figure(width, 3.8 if beside else 6.6, ax)
    first, second = made.subplots(*((1, 2) if beside else (2, 1)))
    _along(first, found)
    _plane(second, found)
    counts = f"{len(sides[0])} positive, {len(sides[1])} negative texts"
    d = "" if found.cohens_d is None else f", d {found.cohens_d:.2f}"
    own = "; the direction was made of these texts" if v is None else ""
    heading(made, f"{found.site}: {counts}; AUC along the direction {found.auc:.3f}{d}{own}", title=title)
    legend(made, *second.get_legend_handles_labels())
    return finished(made)


def _along(axes: Any, found: Separated) -> None:
    ends = np.histogram_bin_edges(np.concatenate(found.along), bins=_bins(sum(map(len, found.along))))
    highest = 0
    for i, values in enumerate(found.along):
        counts, _ = np.histogram(values, ends)
        highest = max(highest, counts.max())
        axes.stairs(counts, ends, fill=True, color=COLOURS[i], alpha=0.35)
        axes.stairs(counts, ends, color=COLOURS[i], linewidth=1.2, linestyle="-" if i == 0 else "--")
        axes.axvline(values.mean(), color=COLOURS[i], linewidth=1.2, linestyle="-" if i == 0 else "--")
    for i, values in enumerate(found.along):  # below the histogram, a row for each side
        height = -highest * (0.05 + 0.06 * i)
        look = {"marker": "|", "color": COLOURS[i], "markersize": 5, "markeredgewidth": 0.8, "linestyle": "none"}
        axes.plot(values, np.full(len(values), height), **look)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_ylim(-highest * 0.16, highest * 1.08)
    tidy(axes)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= highest * 1.08])
    axes.set_xlabel("Along the direction, <h, v / |v|>\n(units of the residual stream)", fontsize=9)
    axes.set_ylabel("Texts (ticks: each text)", fontsize=9)


def _plane(axes: Any, found: Separated) -> None:
    for i, (name, points) in enumerate(zip(SIDES, found.plane, strict=True)):
        axes.scatter(
            points[:, 0], points[:, 1], s=16, marker=MARKERS[i], facecolors=COLOURS[i] if i == 0 else "none",
            edgecolors=COLOURS[i], linewidths=0.9, alpha=0.8, label=name,
        )  # fmt: skip
    everything = np.concatenate(found.plane)
    reach = float(np.abs(everything).max()) or 1.0
    length = 0.85 * reach
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), length, fill=False, edgecolor="#555555", linestyle=":", linewidth=0.8))
    x, y = length * found.direction
    look = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    axes.annotate("", (x, y), (0, 0), arrowprops=look)
    axes.plot([], [], color="black", linewidth=1.4, label="direction (dotted: all of it)")  # for the legend
    axes.set_xlim(-1.08 * reach, 1.08 * reach)
    axes.set_ylim(-1.08 * reach, 1.08 * reach)
    axes.set_aspect("equal")  # an angle in the plane is an angle
    tidy(axes, "both")
    names = [f"Component {i + 1} ({100 * share:.0f} % of the variance)" for i, share in enumerate(found.shares)]
    axes.set_xlabel(names[0], fontsize=9)
    axes.set_ylabel(names[1], fontsize=9)


def _bins(texts: int) -> int:
    return max(5, min(30, round(2 * texts ** (1 / 2))))
