"""Random control vectors: norms, determinism, independence of everything but the seed and the site."""

import pytest
import torch
from steering import vector

import steerfn as sf

V = vector(sf.resid_post[1], sf.resid_pre[2], scale=3.0)


def test_norms_sites_and_dtypes_are_those_of_the_vector():
    for dtype in (torch.float32, torch.float64):
        v = V.to(dtype)
        r = sf.random_vector(like=v)
        assert r.sites == v.sites and r.dtype == dtype
        for site in v.sites:
            assert r.magnitude[site] == pytest.approx(v.magnitude[site], rel=1e-6)
            assert abs(torch.cosine_similarity(r[site], v[site], dim=0)) < 0.7
    half = sf.random_vector(like=V.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert half.magnitude[sf.resid_post[1]] == pytest.approx(V.magnitude[sf.resid_post[1]], rel=1e-2)


def test_directions_are_gaussian():
    """Over many seeds every coordinate has mean 0 and variance 1/d, and coordinates do not correlate."""
    v = sf.SteeringVector({sf.resid_post[0]: torch.tensor([3.0, 4.0, 0.0])})
    drawn = torch.stack([sf.random_vector(v, seed)[0].double() / 5 for seed in range(2000)])
    torch.testing.assert_close(drawn.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.T @ drawn / 2000, torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=0.04)


def test_the_seed_alone_decides():
    state = torch.random.get_rng_state()
    first = sf.random_vector(V, seed=3)
    torch.manual_seed(99)
    assert first.identical(sf.random_vector(V, seed=3)) and not first.allclose(sf.random_vector(V, seed=4))
    torch.random.set_rng_state(state)
    sf.random_vector(V)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_direction_does_not_depend_on_the_other_sites():
    alone = sf.random_vector(V.select(sf.resid_pre[2]), seed=1)
    assert torch.equal(alone[sf.resid_pre[2]], sf.random_vector(V, seed=1)[sf.resid_pre[2]])
    assert sf.random_vector(V, seed=1).select(sf.resid_post[1]).cosine(alone) == 0.0
    two = sf.random_vector(sf.SteeringVector({sf.resid_post[0:2]: torch.ones(32)}))
    assert not torch.allclose(two[0], two[1])


def test_a_zero_direction_stays_zero():
    r = sf.random_vector(sf.SteeringVector({sf.resid_post[0]: torch.zeros(4)}))
    assert not r[0].any()


def test_metadata_names_the_control(tiny):
    like = V.with_metadata(method="mean_difference", model=sf.values.fingerprint(tiny))
    about = sf.random_vector(like, seed=5).metadata
    assert dict(about) == {
        "method": "random",
        "seed": 5,
        "like": "mean_difference",
        "model": sf.values.fingerprint(tiny),
    }
    assert "model" not in sf.random_vector(V).metadata


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(sf.SteerError, match=r"random_vector\(like=\) takes a SteeringVector, not a Tensor"):
        sf.random_vector(torch.ones(4))
    with pytest.raises(sf.DataError, match=r"`seed` must be an integer, got 1.5."):
        sf.random_vector(V, seed=1.5)
