"""One direction at many sites."""

import pytest
import torch
from steering import token_ids, vector

import steerfn as sf

V = vector(sf.resid_post[1]).with_metadata(method="mine")


def test_the_direction_is_at_every_site():
    w = sf.discover.spread(V, [0, "attn_out[1]", sf.resid_pre[1:3], 0])
    assert w.sites == (sf.resid_post[0], sf.attn_out[1], sf.resid_pre[1], sf.resid_pre[2])
    assert all(torch.equal(w[site], V[1]) for site in w.sites)
    assert w.metadata == V.metadata


def test_ablating_everywhere_leaves_nothing_of_it(tiny):
    sites = [site for layer in range(3) for site in (sf.resid_pre[layer], sf.resid_mid[layer], sf.resid_post[layer])]
    with torch.no_grad(), sf.steer(tiny, sf.ablate(sf.discover.spread(V, sites))):
        _, states = sf.capture(tiny, sites)(token_ids())
    unit = V[1] / V[1].norm()
    assert all((state @ unit).abs().max() < 1e-5 * state.norm(dim=-1).max() for state in states.values())


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(sf.SiteError, match=r"spread copies one direction, but this vector has 2: resid_post\[1\], "):
        sf.discover.spread(V + vector(sf.resid_post[2]), 0)
    with pytest.raises(sf.SiteError, match="needs a model to be resolved"):
        sf.discover.spread(V, sf.resid_post[:])
    with pytest.raises(sf.SteerError, match="spread takes a SteeringVector, not a Tensor"):
        sf.discover.spread(torch.ones(4), 0)
