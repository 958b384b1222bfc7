"""How far the state of each token of a text lies along a direction, as numbers."""

import dataclasses
from typing import Any

import numpy as np
import torch

from steerfn._blocks import unwrapped
from steerfn._capture import capture
from steerfn._chat_template import Chat
from steerfn._errors import SiteError
from steerfn._layout import layout
from steerfn._site import Site, as_sites
from steerfn._steer import prepared
from steerfn._text import Text, encode, input_device
from steerfn._vector import SteeringVector, unit
from steerfn.operators import add
from steerfn.operators._base import as_vector


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
    root = unwrapped(model)
    found = layout(root)
    prepared(add(whole), root, found, strict=False)
    vector = whole.resolve(found.n_layers)
    at = vector.sites if site is None else found.resolve(as_sites(site))
    first, *more = at
    if more:
        shown = ", ".join(each.name for each in at[:6]) + (", ..." if len(at) > 6 else "")
        raise SiteError(f"One site is needed, not {len(at)} ({shown}); pass for example site={first.name!r}.")
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
