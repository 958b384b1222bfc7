"""Positive and negative texts along a direction and in the plane of their principal components.

And how far the state of each token of a text lies along a direction.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn.discover import auc, cohens_d
from steerfn.model import Model, Tokenizer, layout, unwrap_model
from steerfn.operators import add, as_vector
from steerfn.plot._figure import COLOURS, MARKERS, figure, finish, heading, height_of, legend, tidy, width_of
from steerfn.run import Chat, Position, Text, activations, as_texts, encode, input_device
from steerfn.values import Site, SiteError, SteeringVector, as_sites, public, unit
from steerfn.verbs import capture, prepare_operator


@dataclasses.dataclass(frozen=True, eq=False)
class Separated:
    """Where the states of two sides of texts lie.

    Attributes:
        along: `<h, u>` of the positive and the negative texts, `u` being the unit direction.
        plane: their coordinates on the first two principal components of all texts, around the common mean, `[n, 2]`.
        direction: the coordinates of `u` in that plane; as long as the part of `u` that lies in it.
        shares: the part of the variance on each of the two components.
        auc: the chance that a positive text lies further along than a negative one.
        cohens_d: the difference of the means in pooled standard deviations; None where there is no spread.
        site: where the states were read.
    """

    along: tuple[np.ndarray, np.ndarray]
    plane: tuple[np.ndarray, np.ndarray]
    direction: np.ndarray
    shares: np.ndarray
    auc: float
    cohens_d: float | None
    site: Site


def read_sides(
    model: Any,
    tokenizer: Any,
    positive: list[Text],
    negative: list[Text],
    v: SteeringVector | None,
    site: Any,
    *,
    position: Position,
    chat: Chat,
    batch_size: int | str,
    progress: bool,
) -> Separated:
    """The activations of both sides along a vector's direction, or along their own mean difference.

    Raises:
        SiteError: neither a vector nor a site, or several sites.
        DataError: as `activations`.
    """
    at, direction = (_one(model, site), None) if v is None else direction_of(model, v, site)
    states = activations(
        model, tokenizer, [*positive, *negative], at, position, batch_size=batch_size, chat=chat, progress=progress
    )[at].double()
    return compare_sides(states[: len(positive)], states[len(positive) :], direction, at)


def compare_sides(positive: Tensor, negative: Tensor, direction: Tensor | None, site: Site) -> Separated:
    """The numbers of two sides of activations, `[texts, width]` each, in float64.

    Args:
        direction: of length 1; None is that of the difference of the means.
    """
    gap = positive.mean(0) - negative.mean(0)
    u = unit(gap) if direction is None else direction
    along = positive @ u, negative @ u
    both = torch.cat([positive, negative])
    both = both - both.mean(0)
    _, spread, axes = torch.linalg.svd(both, full_matrices=False)
    # The sign of a component is arbitrary: the positives lie to the right and above.
    axes = axes[:2] * torch.where(axes[:2] @ gap < 0, -1.0, 1.0).unsqueeze(-1)
    plane = (both @ axes.T).numpy()
    variance = (spread**2 / (spread**2).sum().clamp_min(torch.finfo(torch.float64).tiny))[:2]
    few = len(positive) + len(negative) < 3
    return Separated(
        (along[0].numpy(), along[1].numpy()),
        (plane[: len(positive)], plane[len(positive) :]),
        (axes @ u).numpy(),
        variance.numpy(),
        auc(*along),
        None if few or min(map(len, along)) < 2 else cohens_d(*along),
        site,
    )


def _one(model: Any, site: Any) -> Site:
    if site is None:
        raise SiteError(
            "plot.separation needs a vector, or a site for the texts' own difference: pass vector=..., or site=12."
        )
    at = layout(unwrap_model(model)).resolve(as_sites(site))
    first, *more = at
    if more:
        raise SiteError(f"One site is needed, not {len(at)} ({', '.join(each.name for each in at[:6])}); pass one.")
    return first


SIDES = ("positive", "negative")
WIDE = 5.5
"""Inches from which two panels stand side by side."""


@public
def separation(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any,
    vector: SteeringVector | None = None,
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
        vector: a vector.
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
        >>> sf.plot.separation(model, tokenizer, happy, sad, v).savefig("separation.png")
    """
    sides = as_texts(positive, "positive"), as_texts(negative, "negative")
    width = width_of(width, ax)
    sides_read = read_sides(
        model, tokenizer, *sides, vector, site, position=position, chat=chat, batch_size=batch_size, progress=progress
    )
    beside = width >= WIDE if ax is None else width > height_of(ax)
    made = figure(width, 3.8 if beside else 6.6, ax)
    first, second = made.subplots(*((1, 2) if beside else (2, 1)))
    _along(first, sides_read)
    _plane(second, sides_read)
    counts = f"{len(sides[0])} positive, {len(sides[1])} negative texts"
    d = "" if sides_read.cohens_d is None else f", d {sides_read.cohens_d:.2f}"
    own = "; the direction was made of these texts" if vector is None else ""
    heading(made, f"{sides_read.site}: {counts}; AUC along the direction {sides_read.auc:.3f}{d}{own}", title=title)
    legend(made, *second.get_legend_handles_labels())
    return finish(made)


def _along(axes: Any, sides: Separated) -> None:
    ends = np.histogram_bin_edges(np.concatenate(sides.along), bins=_bins(sum(map(len, sides.along))))
    highest = 0
    for i, values in enumerate(sides.along):
        counts, _ = np.histogram(values, ends)
        highest = max(highest, counts.max())
        axes.stairs(counts, ends, fill=True, color=COLOURS[i], alpha=0.35)
        axes.stairs(counts, ends, color=COLOURS[i], linewidth=1.2, linestyle="-" if i == 0 else "--")
        axes.axvline(values.mean(), color=COLOURS[i], linewidth=1.2, linestyle="-" if i == 0 else "--")
    for i, values in enumerate(sides.along):  # below the histogram, a row for each side
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


def _plane(axes: Any, sides: Separated) -> None:
    for i, (name, points) in enumerate(zip(SIDES, sides.plane, strict=True)):
        axes.scatter(
            points[:, 0], points[:, 1], s=16, marker=MARKERS[i], facecolors=COLOURS[i] if i == 0 else "none",
            edgecolors=COLOURS[i], linewidths=0.9, alpha=0.8, label=name,
        )  # fmt: skip
    everything = np.concatenate(sides.plane)
    reach = float(np.abs(everything).max()) or 1.0
    length = 0.85 * reach
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), length, fill=False, edgecolor="#555555", linestyle=":", linewidth=0.8))
    x, y = length * sides.direction
    look = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    axes.annotate("", (x, y), (0, 0), arrowprops=look)
    axes.plot([], [], color="black", linewidth=1.4, label="direction (dotted: all of it)")  # for the legend
    axes.set_xlim(-1.08 * reach, 1.08 * reach)
    axes.set_ylim(-1.08 * reach, 1.08 * reach)
    axes.set_aspect("equal")  # an angle in the plane is an angle
    tidy(axes, "both")
    names = [f"Component {i + 1} ({100 * share:.0f} % of the variance)" for i, share in enumerate(sides.shares)]
    axes.set_xlabel(names[0], fontsize=9)
    axes.set_ylabel(names[1], fontsize=9)


def _bins(texts: int) -> int:
    return max(5, min(30, round(2 * texts ** (1 / 2))))


@dataclasses.dataclass(frozen=True, eq=False)
class Projections:
    """The tokens of a text and where their states lie.

    Attributes:
        ids: the tokens, special ones included.
        values: `<h_i, v / |v|>` of the state after token `i`, `[tokens]`.
        site: where the states were read.
    """

    ids: tuple[int, ...]
    values: np.ndarray
    site: Site


def direction_of(model: Any, v: Any, site: Any) -> tuple[Site, torch.Tensor]:
    """A site of a model and the unit direction of a vector there.

    Raises:
        SteerError: not a vector, or one that was not made for this model.
        SiteError: none or several sites where one is needed, or a site that the vector lacks.
    """
    whole = as_vector(v, "A plot of projections")
    root = unwrap_model(model)
    model_layout = layout(root)
    prepare_operator(add(whole), root, model_layout)
    vector = whole.resolve(model_layout.n_layers)
    at = vector.sites if site is None else model_layout.resolve(as_sites(site))
    first, *more = at
    if more:
        names = ", ".join(each.name for each in at[:6]) + (", ..." if len(at) > 6 else "")
        raise SiteError(f"One site is needed, not {len(at)} ({names}); pass for example site={first.name!r}.")
    return first, unit(vector[first].detach().double().cpu())


def projections(
    model: Any, tokenizer: Any, text: Text, v: SteeringVector, site: Any = None, chat: Chat = False
) -> Projections:
    """The states of a text's tokens along a direction, steered inside a context of the caller.

    Raises:
        DataError: as `encode`.
        SteerError: as `direction_of`.
    """
    at, direction = direction_of(model, v, site)
    (ids,) = encode(tokenizer, [text], chat)
    row = torch.tensor([ids], device=input_device(model))
    with torch.no_grad():
        _, states = capture(model, at)(input_ids=row, attention_mask=torch.ones_like(row))
    values = states[at][0].double().cpu() @ direction
    return Projections(tuple(ids), values.numpy(), at)
