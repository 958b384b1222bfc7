"""One direction at many sites, for operators that act along the whole stream."""

from steerfn.operators import as_vector
from steerfn.values import SiteError, Sites, SteeringVector, as_sites, public, replace


@public
def spread(vector: SteeringVector, sites: Sites) -> SteeringVector:
    """The direction of a vector with one site, copied to other sites: `w[s] = v` for each `s`.

    Directions at different depths of one residual stream live in one space, so what was found at one place can be
    removed, or looked for, at all of them: `sf.ablate(sf.discover.spread(v, sites))`.

    Args:
        vector: a vector with a single site.
        sites: one or several, layers counted as in any vector; an int means `resid_post`.

    Returns:
        A vector with the metadata of `vector`.

    Raises:
        SiteError: `vector` has several sites, or a range of sites without bounds.

    Source: Arditi et al. 2024 (ablation of one direction at every layer).

    Example:
        >>> import torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_pre[3]: torch.ones(4)})
        >>> sf.discover.spread(v, sf.resid_post[0:3])
        SteeringVector(resid_post[0] |v|=2, resid_post[1] |v|=2, resid_post[2] |v|=2)
    """
    vector = as_vector(vector, "spread")
    if len(vector.sites) != 1:
        some = ", ".join(map(str, vector.sites[:8]))
        raise SiteError(
            f"spread copies one direction, but this vector has {len(vector.sites)}: {some}; "
            "choose one with v.select(site)."
        )
    where = tuple(dict.fromkeys(site for each in as_sites(sites) for site in each.expand()))
    return replace(vector, sites=where, _directions=vector._directions * len(where))
