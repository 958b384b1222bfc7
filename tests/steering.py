"""What tests of the model boundary share: token ids, sites and vectors of a model, an operator that fails."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import steerfn as sf


def token_ids(rows: int = 2, length: int = 6, seed: int = 1) -> torch.Tensor:
    """Seeded token ids without specials."""
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(seed))


def sites_of(model: nn.Module, *kinds: str) -> list[sf.Site]:
    """Every site of a model, in the order of its blocks (of some kinds; of `head_out` heads 0 and the last).

    Blocks that run with images only are left out.
    """
    found, layout = [], sf.layout(model)
    for layer, block in enumerate(layout.blocks):
        for kind in block.kinds if layer not in layout.idle else ():
            if kinds and kind not in kinds:
                continue
            heads = (0, block.heads - 1) if kind == "head_out" else (None,)
            found += [sf.Site(kind, layer, head) for head in heads]
    return found


def vector_at(
    model: nn.Module, sites: sf.Site | Sequence[sf.Site], seed: int = 0, scale: float = 1.0
) -> sf.SteeringVector:
    """A seeded random vector at sites of one width."""
    sites = [sites] if isinstance(sites, sf.Site) else list(sites)
    random = torch.Generator().manual_seed(seed)
    widths = [sf.layout(model).width(site) for site in sites]
    return sf.SteeringVector({s: scale * torch.randn(w, generator=random) for s, w in zip(sites, widths, strict=True)})


def vector(*sites: sf.Site, width: int = 32, seed: int = 0, scale: float = 1.0) -> sf.SteeringVector:
    """A seeded random vector at some sites."""
    random = torch.Generator().manual_seed(seed)
    return sf.SteeringVector({site: scale * torch.randn(width, generator=random) for site in sites})


def everywhere_in(model: nn.Module, seed: int = 0, scale: float = 0.3) -> sf.SteeringVector:
    """A vector with a direction at every site, so that every module that can be substituted is."""
    return vector_at(model, sites_of(model), seed, scale)


def raising(vector: sf.SteeringVector, error: BaseException) -> sf.Operator:
    """An operator that raises in the middle of a forward pass."""

    def schedule(index: torch.Tensor) -> Any:
        raise error

    return sf.scheduled(sf.add(vector), schedule)
