"""Random directions of the same norm: the control that a steering result needs."""

import hashlib

import torch
from torch import Tensor

from steerfn.operators import as_vector
from steerfn.values import Metadata, Site, SteeringVector, integer, public, unit


@public
def random_vector(like: SteeringVector, seed: int = 0) -> SteeringVector:
    """A random vector of the same norm: `r = |v| g / |g|` at each site of `v`, with `g ~ N(0, I)`.

    What a vector does beyond what any push of that size does shows only against such a control. A direction depends
    on the seed, the site and the width alone: not on the device, on the other sites, or on torch's random state,
    which stays as it is. A zero direction stays zero.

    Args:
        like: the vector to match, in sites, norms, dtype and device.
        seed: another seed, other directions.

    Raises:
        SteerError: `like` is not a vector, or the seed not an int.

    Source: the random-direction baselines of Turner et al. 2023 and Arditi et al. 2024.

    Example:
        >>> import torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[3]: torch.tensor([3.0, 4.0, 0.0])})
        >>> round(sf.random_vector(like=v, seed=1).magnitude[sf.resid_post[3]], 4)
        5.0
    """
    v = as_vector(like, "random_vector(like=)")
    seed = integer("seed", seed)
    directions = {
        site: _direction(direction, site, seed) for site, direction in zip(v.sites, v.directions, strict=True)
    }
    metadata = {"method": "random", "seed": seed, "like": v.metadata.get("method")}
    metadata |= {key: v.metadata[key] for key in ("model",) if key in v.metadata}
    return SteeringVector(directions, Metadata(metadata, checked_for=v.metadata.checked_for))


def _direction(like: Tensor, site: Site, seed: int) -> Tensor:
    # A seed for each site, so that random_vector(v.select(s)) is random_vector(v).select(s).
    digest = hashlib.sha256(f"{seed} {site.name}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    drawn = unit(torch.randn(like.shape[-1], generator=random, dtype=torch.float64))
    norm = torch.linalg.vector_norm(like.detach().double().cpu())
    return (norm * drawn).to(like.dtype).to(like.device)
