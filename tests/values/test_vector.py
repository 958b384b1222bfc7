"""Steering vectors: what is accepted, what is refused in which words, and what the values say."""

import copy
import math
import re

import numpy as np
import pytest
import torch

import steerfn as sf
from steerfn import SteeringVector
from steerfn.values._unit import unit

POST = sf.resid_post


def vector(directions, **metadata):
    """A vector from lists of numbers."""
    return SteeringVector({k: torch.tensor(v) for k, v in directions.items()}, metadata)


def refused(text, make, error=sf.ShapeError):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        make()


# -- construction --------------------------------------------------------------------------------


def test_keys_name_sites():
    one = torch.ones(4)
    v = SteeringVector(
        {3: one, sf.attn_out[-1]: 2 * one, "mlp_out[0]": 3 * one, POST[5:7]: 4 * one, sf.head_out[1, 0]: one[:2]}
    )
    assert list(v) == [POST[3], sf.attn_out[-1], sf.mlp_out[0], POST[5], POST[6], sf.head_out[1, 0]]
    assert [float(v[s][0]) for s in v] == [1.0, 2.0, 3.0, 4.0, 4.0, 1.0]
    assert len(v) == 6 and v.layers == (-1, 0, 1, 3, 5, 6) and v.d_model == 4
    assert 3 in v and POST[6] in v and "mlp_out[0]" in v and 4 not in v and [3, 5] in v and [3, 4] not in v
    assert SteeringVector({sf.head_out[1, 0]: one}).d_model is None


def test_a_range_takes_one_direction_or_a_stack():
    stack = torch.arange(6.0).reshape(2, 3)
    v = SteeringVector({POST[4:6]: stack})
    assert torch.equal(v[4], stack[0]) and torch.equal(v[5], stack[1])
    v = SteeringVector({sf.head_out[1:6:2, 3]: torch.ones(2)})
    assert v.sites == (sf.head_out[1, 3], sf.head_out[3, 3], sf.head_out[5, 3])


def test_keys_that_meet_on_a_site_add_up():
    assert torch.equal(vector({3: [1.0, 2.0], POST[2:4]: [10.0, 10.0]})[3], torch.tensor([11.0, 12.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_kept(dtype):
    v = SteeringVector({0: torch.ones(3, dtype=dtype)})
    assert v.dtype == v[0].dtype == (v + v).dtype == (2.5 * v).dtype == (v / 2).dtype == v.unit().dtype == dtype
    assert (torch.tensor(2.0, dtype=torch.float64) * v).dtype == dtype and v.device == torch.device("cpu")


def test_what_is_no_mapping_is_refused():
    text = "A SteeringVector is made from a mapping of sites to tensors, not from a {}: write "
    for given, name in [(torch.ones(3), "Tensor"), ([1.0], "list"), (None, "NoneType")]:
        fix = "SteeringVector({sf.resid_post[12]: tensor})."
        refused(text.format(name) + fix, lambda given=given: SteeringVector(given))


def test_directions_that_are_none_are_refused():
    text = "The direction at resid_post[3] is a list; pass a torch tensor of shape [d_model]."
    refused(text, lambda: SteeringVector({3: [1.0]}))
    text = "The direction at resid_post[3] is a ndarray; pass a torch tensor of shape [d_model]."
    refused(text, lambda: SteeringVector({3: np.ones(3)}))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        text = f"A direction holds floating-point numbers, not {dtype}; convert it with tensor.float()."
        refused(text, lambda dtype=dtype: SteeringVector({3: torch.ones(3, dtype=dtype)}))
    for shape in ([], [1, 3], [2, 2, 2]):
        text = f"The direction at resid_post[3] has shape {shape}; pass one of shape [d_model]."
        refused(text, lambda shape=shape: SteeringVector({3: torch.ones(shape)}))
    text = "The direction at resid_post[0:2] has shape [3, 4]; pass one of shape [d_model] or [2, d_model]."
    refused(text, lambda: SteeringVector({POST[0:2]: torch.ones(3, 4)}))
    text = "The direction at resid_post[3] is empty; pass a tensor of shape [d_model]."
    refused(text, lambda: SteeringVector({3: torch.ones(0)}))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_directions_that_are_not_finite_are_refused(bad):
    text = "has 2 entries that are NaN or infinite; a direction must be finite."
    refused(f"The direction at resid_post[3] {text}", lambda: vector({3: [1.0, bad, bad]}))
    # Every direction is looked at, not the first alone.
    refused(f"The direction at attn_out[4] {text}", lambda: vector({3: [1.0, 1.0], sf.attn_out[4]: [bad, bad]}))


def test_no_direction_and_keys_that_name_no_site_are_refused():
    text = "A SteeringVector needs at least one direction: SteeringVector({sf.resid_post[12]: tensor})."
    refused(text, lambda: SteeringVector({}), sf.SiteError)
    refused("A layer is an integer, not 1.5 of type float.", lambda: vector({1.5: [1.0]}), sf.SiteError)
    text = "resid_post[3:] needs a model to be resolved; write both bounds as layers from 0, as in [10:14]."
    refused(text, lambda: vector({POST[3:]: [1.0]}), sf.SiteError)
    text = "One site is needed here, not 2 (resid_post[1], resid_post[2]); select several with v.select(sites)."
    refused(text, lambda: vector({(1, 2): [1.0]}), sf.SiteError)


def test_widths_agree():
    text = "The directions of one vector share a width, but these differ: resid_post[0] has 2, attn_out[1] has 1."
    refused(text, lambda: vector({0: [1.0, 2.0], sf.attn_out[1]: [1.0]}))
    text = "The directions of one vector share a width, but these differ: head_out[0, 0] has 2, head_out[0, 1] has 1."
    refused(text, lambda: vector({sf.head_out[0, 0]: [1.0, 2.0], sf.head_out[0, 1]: [1.0]}))
    assert vector({0: [1.0, 2.0], sf.head_out[0, 0]: [1.0]}).d_model == 2


def test_metadata():
    v = vector({0: [1.0]}, method="caa", counts=[1, 2])
    assert v.metadata == {"method": "caa", "counts": [1, 2]} and (2 * v).metadata == v.metadata
    w = v.with_metadata(counts=3, model="m")
    assert w.metadata == {"method": "caa", "counts": 3, "model": "m"} and v.metadata["counts"] == [1, 2]
    assert (v + w).metadata == {"method": "caa"} and (v + v).metadata == v.metadata
    with pytest.raises(sf.DataError):
        SteeringVector({0: torch.ones(2)}, {"a": object()})


# -- values --------------------------------------------------------------------------------------


def test_nothing_outside_changes_a_vector():
    source = torch.ones(3)
    stack = torch.ones(2, 3)
    v = SteeringVector({0: source, POST[4:6]: stack})
    kept = copy.deepcopy(v)
    source.mul_(5)
    stack.mul_(5)
    v[0].mul_(7)
    (1 * v)[0].mul_(7)
    v.select(0)[0].mul_(7)
    v.directions[0].mul_(7)
    v.to(torch.float32).directions[0].mul_(7)
    assert v.identical(kept)


def test_arithmetic_never_leaves_a_vector_that_is_not_finite():
    v = SteeringVector({0: torch.full((3,), 1e6), 1: torch.ones(3)})
    for make, text in [
        (
            lambda: v * 1e38,
            "A vector times 1e+38 has a direction at resid_post[0] with entries",
        ),
        (lambda: v * torch.tensor(torch.nan), "A vector times tensor(nan) has"),
        (lambda: v / 1e-38, "A vector divided by 1e-38 has"),
        (lambda: v / torch.tensor(0.0), "A vector divided by tensor(0.) has"),
        (lambda: v.to(torch.float16), "This vector as torch.float16 has"),
        (lambda: 3e38 * SteeringVector({0: torch.ones(3)}) + 3e38 * SteeringVector({0: torch.ones(3)}), "The sum or"),
        (lambda: SteeringVector({0: torch.full((3,), 3e38), POST[0:2]: torch.full((3,), 3e38)}), "The sum of the"),
        (lambda: sf.add(v, 1e35), "alpha 1e+35 times the direction at resid_post[0], whose norm is 1.73e+06,"),
    ]:
        with pytest.raises(sf.ShapeError, match=f"^{re.escape(text)}"):
            make()
    assert torch.func.grad(lambda x: SteeringVector({0: x}).unit()[0].sum())(torch.ones(3)).abs().max() < 1e-6


def test_sum_of_vectors():
    v, w = SteeringVector({0: torch.ones(3)}), SteeringVector({0: torch.arange(3.0), 1: torch.ones(3)})
    assert sum([v, w, v]).allclose(2 * v + w)
    with pytest.raises(TypeError):
        sum([v], 1)


def test_gradients_flow_through_construction_and_algebra():
    source = torch.ones(3, requires_grad=True)
    v = 2 * SteeringVector({0: source}) - SteeringVector({0: source}) / 2
    v[0].sum().backward()
    assert torch.equal(source.grad, torch.full((3,), 1.5))


def test_reading_a_direction_that_is_not_there():
    v = vector({0: [1.0], sf.attn_out[2]: [1.0]})
    text = "This vector has no direction at resid_post[1]; it has resid_post[0], attn_out[2]."
    refused(text, lambda: v[1], sf.SiteError)
    refused(text, lambda: v.select(1), sf.SiteError)
    refused(text, lambda: v.select([0, 1]), sf.SiteError)
    many = SteeringVector({POST[0:20]: torch.ones(2)})
    with pytest.raises(sf.SiteError, match=re.escape("resid_post[7], ... (20 sites).")):
        many[30]


def test_algebra_by_hand():
    v, w = vector({0: [1.0, -2.0], 1: [3.0, 4.0]}), vector({1: [0.5, 0.0], 2: [1.0, 1.0]})
    total = v + w
    assert total.sites == (POST[0], POST[1], POST[2])
    assert [d.tolist() for d in total.directions] == [[1.0, -2.0], [3.5, 4.0], [1.0, 1.0]]
    assert [d.tolist() for d in (v - w).directions] == [[1.0, -2.0], [2.5, 4.0], [-1.0, -1.0]]
    assert [d.tolist() for d in (-v).directions] == [[-1.0, 2.0], [-3.0, -4.0]]
    assert [d.tolist() for d in (v * 3).directions] == [[3.0, -6.0], [9.0, 12.0]]
    assert [d.tolist() for d in (v / 2).directions] == [[0.5, -1.0], [1.5, 2.0]]


@pytest.mark.parametrize("three", [3, 3.0, np.float64(3), np.float32(3), np.float16(3), np.int64(3), torch.tensor(3)])
def test_every_kind_of_number_scales(three):
    v = vector({0: [1.0, -2.0]})
    for product in (three * v, v * three):
        assert isinstance(product, SteeringVector) and product[0].tolist() == [3.0, -6.0] and product.dtype == v.dtype
    assert torch.allclose((v / three)[0], v[0] / 3)


def test_what_does_not_scale_a_vector():
    v = vector({0: [1.0, 2.0]})
    for factor in (True, "a", None, [1.0], 1j):
        for product in (lambda f=factor: v * f, lambda f=factor: f * v, lambda f=factor: v / f):
            with pytest.raises(TypeError):
                product()
    for add in (lambda: v + 1, lambda: 1 + v, lambda: v - torch.ones(2)):
        with pytest.raises(TypeError):
            add()
    with pytest.raises(sf.ShapeError, match=r"not by a tensor of shape \[2\].*use add\(v, alpha=tensor\)\."):
        v * torch.ones(2)
    for bad in (math.inf, math.nan, -math.inf, np.float32(math.inf), 10**400):
        with pytest.raises(sf.ShapeError, match="^A steering vector is scaled by a finite number, not by "):
            v * bad
    for zero in (0, 0.0, np.float32(0)):
        text = "A steering vector cannot be divided by 0; multiply it by 0 for the zero vector."
        refused(text, lambda zero=zero: v / zero)


def test_vectors_of_two_models_do_not_combine():
    v, w = vector({0: [1.0, 2.0]}), vector({0: [1.0]})
    text = "The directions at resid_post[0] have widths 2 and 1: vectors of two different models cannot be combined."
    for combine in (lambda: v + w, lambda: v - w, lambda: v.cosine(w)):
        refused(text, combine)
    text = "The vectors have widths 2 and 1: vectors of two different models cannot be combined."
    refused(text, lambda: v + vector({1: [1.0]}))
    refused(text, lambda: vector({sf.head_out[0, 0]: [1.0, 2.0]}) + vector({sf.head_out[0, 1]: [1.0]}))
    assert len(v + vector({sf.head_out[0, 1]: [1.0]})) == 2


def test_magnitude_and_repr():
    v = vector({0: [3.0, 4.0], sf.attn_out[2]: [0.0, 0.0]}, method="caa")
    assert v.magnitude == {POST[0]: 5.0, sf.attn_out[2]: 0.0}
    assert repr(v) == "SteeringVector(resid_post[0] |v|=5, attn_out[2] |v|=0, caa)"
    assert "... 9 sites)" in repr(SteeringVector({POST[0:9]: torch.ones(2)}))


def test_unit_by_hand_and_of_zero():
    v = vector({0: [3.0, 4.0], 1: [0.0, 0.0], 2: [-0.0, -7.0]}).unit()
    assert torch.allclose(v[0], torch.tensor([0.6, 0.8])) and not v[1].any() and v[2].tolist() == [0.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_norms_neither_overflow_nor_vanish(dtype):
    """Pitfall 14: in fp16, |v| of 300 entries of 300 is more than the largest square."""
    info = torch.finfo(dtype)
    for entry in (300.0, info.max, info.smallest_normal, info.smallest_normal * info.eps, 1.0):
        d = torch.full((64,), entry, dtype=dtype)
        d[::2] *= -1
        v = SteeringVector({0: d})
        expected = 8.0 * float(d[1].double())
        assert v.magnitude[POST[0]] == pytest.approx(expected, rel=1e-6)
        assert torch.allclose(v.unit()[0].double(), d.double().sign() / 8, rtol=8 * info.eps)
        assert v.cosine(v) == pytest.approx(1.0) and v.cosine(-v) == pytest.approx(-1.0)
        if dtype != torch.float64:
            out = sf.ablate(v)(torch.ones(1, 1, 64, dtype=dtype), sf.Info.of(torch.ones(1, 1, 64)))
            assert torch.isfinite(out).all()


def test_unit_of_several_rows_and_its_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e30, 0.0]], requires_grad=True)
    out = unit(rows)
    assert torch.allclose(out, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    out[:2].sum().backward()
    assert torch.isfinite(rows.grad).all()
    by_hand = (torch.eye(2) - torch.outer(out[0], out[0]).detach()).sum(0) / 5
    assert torch.allclose(rows.grad[0], by_hand)


def test_cosine_by_hand():
    v, w = vector({0: [1.0, 0.0], 1: [2.0, 0.0]}), vector({1: [2.0, 2.0], 2: [5.0, 0.0]})
    assert v.cosine(w) == pytest.approx(4 / math.sqrt(5 * 33))
    assert v.cosine(vector({7: [1.0, 1.0]})) == 0.0 and v.cosine(0 * v) == 0.0 == (0 * v).cosine(0 * v)
    refused("cosine compares two steering vectors, not a vector and a Tensor.", lambda: v.cosine(torch.ones(2)))


def test_select():
    v = vector({0: [0.0], 3: [3.0], sf.attn_out[3]: [4.0], 7: [7.0], -1: [9.0]}, method="m")
    assert v.select(3).sites == (POST[3],) and v.select(3).metadata == v.metadata
    assert v.select([7, sf.attn_out[3], 7]).sites == (POST[7], sf.attn_out[3])
    assert v.select(POST[1:8]).sites == (POST[3], POST[7]) and v.select(POST[::-1]).sites == (POST[7], POST[3], POST[0])
    assert v.select(-1)[-1].tolist() == [9.0]
    with pytest.raises(sf.SiteError, match=re.escape("no direction at resid_post[4:6]")):
        v.select(POST[4:6])


def test_to():
    v = vector({0: [1.0, 2.0]}, method="m")
    half = v.to(torch.float16)
    assert half.dtype == torch.float16 and v.dtype == torch.float32 and half.metadata == v.metadata
    assert v.to("cpu").identical(v) and v.to(device="cpu", dtype=torch.float64).dtype == torch.float64
    assert v.to("meta").device.type == "meta"
    text = "A direction holds floating-point numbers, not torch.int64; convert it with tensor.float()."
    refused(text, lambda: v.to(torch.int64))
    with pytest.raises(sf.ShapeError, match=r"^A vector cannot be moved to \('no-device'\): "):
        v.to("no-device")


def test_allclose_and_identical():
    v = vector({0: [1.0, 2.0], 1: [0.0, 0.0]}, method="m")
    reordered = vector({1: [0.0, 0.0], 0: [1.0, 2.0]}, method="m")
    nearly = vector({0: [1.0 + 1e-6, 2.0], 1: [0.0, 0.0]}, method="m")
    negative = vector({0: [1.0, 2.0], 1: [-0.0, 0.0]}, method="m")
    assert (
        v.identical(copy.deepcopy(v))
        and v.allclose(nearly)
        and v.allclose(v.to(torch.float64))
        and v.allclose(reordered)
    )
    for other in (reordered, nearly, negative, v.to(torch.float64), v.with_metadata(a=1), v.select(0)):
        assert not v.identical(other) and not other.identical(v)
    assert not v.allclose(v.select(0)) and not v.allclose(2 * v) and v.allclose(2 * v, rtol=1.0)
    assert not v.allclose(vector({0: [1.0], 1: [0.0]}))
    refused("A steering vector compares with another, not with a Tensor.", lambda: v.allclose(torch.ones(2)))
    refused("A steering vector compares with another, not with a NoneType.", lambda: v.identical(None))


def test_resolve():
    v = vector({-1: [1.0], 2: [10.0], sf.attn_out[-3]: [5.0]})
    r = v.resolve(3)
    assert r.sites == (POST[2], sf.attn_out[0]) and r[2].tolist() == [11.0]
    assert r.resolve(3) is r and v.resolve(5).sites == (POST[4], POST[2], sf.attn_out[2])
    with pytest.raises(sf.SiteError, match="out of range: the model has 2 blocks"):
        v.resolve(2)
    assert r._at(POST[2]) is r._directions[0] and r._at(POST[1]) is None
