"""A layer profile as a figure."""

import collections
from typing import Any

from steerfn.discover import Profile
from steerfn.plot._figure import COLOURS, GREY, MARKERS, check_result, figure, finish, legend, lines_of, tidy, width_of
from steerfn.values import DataError, public


@public
def layers(profile: Profile, *, ax: Any = None, title: str | None = None, width: float = 6.0) -> Any:
    """How well the two sides are told apart at every layer: held-out AUC above, Cohen's d below.

    One line for each kind of site, points for heads. Chance is dashed, the site with the best AUC ringed and named.

    Args:
        profile: from `layer_profile`.
        ax: an axes of yours, from plt.subplots(), in whose place the plot stands.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`, 4 inches high: `figure.savefig("layers.png")`, or .svg, .pdf.

    Raises:
        SteerError: not a profile, or matplotlib is not installed.
        DataError: a profile that was not cross-validated.

    Example:
        >>> import steerfn as sf
        >>> profile = sf.discover.layer_profile(model, tokenizer, happy, sad, sites=[10, 14])
        >>> sf.plot.layers(profile).savefig("layers.png")
    """
    check_result("layers", profile, Profile, "sf.discover.layer_profile(model, tokenizer, positive, negative)")
    table = profile.table
    if all(each.auc is None for _, each in table):
        raise DataError(
            "This profile has no held-out AUC, because there were too few texts to cross-validate; pass more texts to "
            "layer_profile, at least two a side."
        )
    width = width_of(width, ax)
    made = figure(width, ax=ax)
    upper, lower = made.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    kinds: dict[str, list[Any]] = collections.defaultdict(list)
    for site, each in table:
        kinds[site.kind].append((site, each))
    for i, (kind, sites) in enumerate(kinds.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 3.5}
        line = "none" if kind == "head_out" else "-"
        depth = [site.block for site, _ in sites]
        for axes, values in ((upper, [each.auc for _, each in sites]), (lower, [each.cohens_d for _, each in sites])):
            known = [float("nan") if value is None else value for value in values]
            axes.plot(depth, known, linestyle=line, linewidth=1.4, label=kind, **look)
    for axes, chance in ((upper, 0.5), (lower, 0.0)):
        axes.axhline(chance, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        tidy(axes)
    best, qualities = profile.best(), dict(table)
    ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgecolor": "black"}
    name = f"best: {best}, AUC {qualities[best].auc:.3f}"
    upper.plot([best.block], [qualities[best].auc], linestyle="none", label=name, **ring)
    known = [0.5, *(each.auc for _, each in table if each.auc is not None)]
    # Nothing lies beyond 0 and 1, so no tick does; the margin is that of half a ring.
    margin = 0.08 * max(max(known) - min(known), 0.05)
    upper.set_ylim(max(min(known) - margin, -0.03), min(max(known) + margin, 1.03))
    (positive, negative), folds = table[0][1].n, max(each.folds for _, each in table)
    method = str(profile.vectors.metadata.get("method", "direction")).replace("_", " ")
    heading = (
        f"{method}: {positive} positive, {negative} negative texts, {folds} folds" if title is None else str(title)
    )
    upper.set_title("\n".join(lines_of(heading, width - 0.9)), fontsize=9, loc="left", pad=10)
    upper.set_ylabel("Held-out AUC\n(dashed: chance)", fontsize=9)
    lower.set_ylabel("Cohen's d\n(pooled SD)", fontsize=9)
    lower.set_xlabel("Layer (block index, from 0)", fontsize=9)
    lower.xaxis.get_major_locator().set_params(integer=True)
    legend(made, *upper.get_legend_handles_labels())
    return finish(made)
