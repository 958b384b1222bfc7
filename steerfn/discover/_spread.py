"""One direction at many sites, for operators that act along the whole stream."""

from typing import Any

from steerfn._errors import SiteError
from steerfn._site import as_sites
from steerfn._struct import replace
from steerfn._vector import SteeringVector
from steerfn.operators._base import as_vector


def spread(v: SteeringVector, sites: Any) -> SteeringVector:
    """The direction of a vector with one site, copied to other sites: `w[s] = v` for each `s`.

    Directions at different depths of one residual stream live in one space, so what was found at one place can be
    removed, or looked for, at all of them: `sf.ablate(sf.spread(v, sites))`.

    Args:
        v: a vector with a single site.
        sites: one or several, layers counted as in any vector; an int means `resid_post`.

    Returns:
        A vector with the metadata of `v`.

    Raises:
        SiteError: `v` has several sites, or a range of sites without bounds.

    Source: Arditi et al. 2024 (ablation of one direction at every layer).

    Example:
        >>> import torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_pre[3]: torch.ones(4)})
        >>> sf.spread(v, sf.resid_post[0:3])
        SteeringVector(resid_post[0] |v|=2, resid_post[1] |v|=2, resid_post[2] |v|=2)
    """
    v = as_vector(v, "spread")
    if len(v.sites) != 1:
        raise SiteError(
            f"spread copies one direction, but this vector has {len(v.sites)}: {', '.join(map(str, v.sites[:8]))}; "
            "choose one with v.select(site)."
        )
    where = tuple(dict.fromkeys(site for each in as_sites(sites) for site in each.expand()))
    return replace(v, sites=where, _directions=v._directions * len(where))
