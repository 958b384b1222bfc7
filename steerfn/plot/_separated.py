"""Two sides of texts along a direction and in the plane in which they vary most, as numbers."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn._activations import activations
from steerfn._blocks import unwrapped
from steerfn._chat_template import Chat
from steerfn._errors import SiteError
from steerfn._layout import layout
from steerfn._site import Site, as_sites
from steerfn._text import Text
from steerfn._vector import SteeringVector, unit
from steerfn.discover.engine._quality import auc, cohens_d
from steerfn.plot._projections import direction_of
from steerfn.reading import Position


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


def separated(
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
    return measured(states[: len(positive)], states[len(positive) :], direction, at)


def measured(positive: Tensor, negative: Tensor, direction: Tensor | None, site: Site) -> Separated:
    """The numbers of two sides of activations, `[texts, width]` each, in float64.

    Args:
        positive: of the positive texts.
        negative: of the negative ones.
        direction: of length 1; None is that of the difference of the means.
        site: where they were read.
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
        raise SiteError("plot.separation needs a vector, or a site for the texts' own difference: pass v, or site=12.")
    at = layout(unwrapped(model)).resolve(as_sites(site))
    first, *more = at
    if more:
        raise SiteError(f"One site is needed, not {len(at)} ({', '.join(each.name for each in at[:6])}); pass one.")
    return first
