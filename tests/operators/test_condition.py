"""Conditions: by hand, combined, read at an earlier site, and what is refused."""

import re

import pytest
import torch

import steerfn as sf
from steerfn.model import steering_identity
from steerfn.values._struct import replace

POST = sf.resid_post
V = sf.SteeringVector({POST[3]: torch.tensor([3.0, 4.0])})
H = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], [[3.0, 4.0], [4.0, -3.0], [-3.0, -4.0]]])
INFO = sf.Info.of(H, POST[3])
ADD = sf.add(sf.SteeringVector({POST[3]: torch.ones(2)}), 10.0)


def chosen(condition, info=INFO, op=ADD):
    """The tokens an operator under this condition changes."""
    out = sf.when(condition, op)(H, info)
    return ((out - H).sum(-1) == 20).tolist()


def refused(text, make, error=sf.SteerError):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        make()


@pytest.mark.parametrize("threshold", [-1.1, -0.61, -0.3, 0.3, 0.59, 0.61, 0.99, 1.1])
def test_cosine_above(threshold):
    expected = [[(float(h @ V[3]) / (float(h.norm()) * 5) if h.any() else 0.0) > threshold for h in row] for row in H]
    for v in (V, 1e-20 * V, 1e20 * V):
        assert chosen(sf.cosine_above(v, threshold)) == expected
    assert chosen(sf.cosine_above(0 * V, threshold)) == [[0.0 > threshold] * 3] * 2


@pytest.mark.parametrize("threshold", [-5.1, -4.9, -0.7, -0.1, 0.1, 0.59, 4.9, 5.1])
def test_projection_above(threshold):
    expected = [[float(h @ V[3]) / 5 > threshold for h in row] for row in H]
    for v in (V, 7 * V):
        assert chosen(sf.projection_above(v, threshold)) == expected
    assert chosen(sf.projection_above(V, torch.tensor(threshold))) == expected


@pytest.mark.parametrize("bias", [-24.0, -2.0, -0.5, 0.0, 0.5, 26.0])
def test_probe(bias):
    expected = [[float(h @ V[3]) + bias > 0 for h in row] for row in H]
    assert chosen(sf.probe(V, bias)) == expected
    assert chosen(sf.probe(V)) == [[float(h @ V[3]) > 0 for h in row] for row in H]


def test_a_combination_is_identified_alike_in_every_process(monkeypatch):
    monkeypatch.setattr("steerfn.model._provenance.secrets.token_hex", lambda size: pytest.fail("named by chance"))
    a, b = sf.projection_above(V, 0.0), sf.projection_above(V, 1.0)
    found = {steering_identity(sf.when(condition, ADD))["sha256"] for condition in (a, a | b, a & b, ~a, b | a)}
    assert len(found) == 5


def test_combinations_are_boolean_algebra():
    a, b = sf.projection_above(V, 0.0), sf.projection_above(V, 1.0)
    first, second = chosen(a), chosen(b)
    pairs = [list(zip(x, y, strict=True)) for x, y in zip(first, second, strict=True)]
    assert chosen(a | b) == [[x or y for x, y in row] for row in pairs]
    assert chosen(a & b) == [[x and y for x, y in row] for row in pairs]
    assert chosen(~a) == [[not x for x, _ in row] for row in pairs]
    assert chosen(~(a & ~b)) == [[not (x and not y) for x, y in row] for row in pairs]
    assert chosen(a | True) == chosen(True) == [[True] * 3] * 2
    assert chosen(a & False) == chosen(False) == [[False] * 3] * 2


def test_unchosen_tokens_keep_their_bits():
    h = torch.tensor([[[-0.0, 0.0], [5.0, 5.0]]])
    out = sf.when(sf.projection_above(V, 1.0), ADD)(h, sf.Info.of(h, POST[3]))
    assert torch.equal(out[0, 0].view(torch.int32), h[0, 0].view(torch.int32)) and out[0, 1].tolist() == [15.0, 15.0]


def test_a_condition_is_read_at_an_earlier_site():
    earlier = sf.SteeringVector({sf.attn_out[1]: torch.tensor([1.0, 0.0])})
    read = torch.zeros(2, 3, 2)
    read[0, 2, 0] = read[1, 1, 0] = 2.0
    info = replace(INFO, reads={sf.attn_out[1]: read})
    for condition in (sf.projection_above(earlier, 1.0), sf.cosine_above(earlier, 0.5), sf.probe(earlier, -1.0)):
        assert chosen(condition, info) == [[False, False, True], [False, True, False]]
        op = sf.when(condition, ADD)
        assert op.reads == (sf.attn_out[1],) and op.sites == (POST[3],) and len(op.vectors) == 2
    both = sf.projection_above(earlier, 1.0) | sf.projection_above(V, 1.0)
    assert chosen(both, info) == [[False, False, True], [True, True, False]]
    assert sf.when(both, ADD).reads == (sf.attn_out[1], POST[3])
    # Each row of sf.rows reads its own rows.
    out = sf.rows([sf.when(sf.projection_above(earlier, 1.0), ADD)] * 2)(H, info)
    assert ((out - H).sum(-1) == 20).tolist() == [[False, False, True], [False, True, False]]
    text = (
        "A condition is read at attn_out[1], but the hidden state there is not known at resid_post[3]; outside a model "
        "pass it as Info(site, tokens, reads={site: hidden})."
    )
    refused(text, lambda: chosen(sf.probe(earlier)))
    refused(text, lambda: chosen(sf.probe(earlier), replace(INFO, reads={POST[0]: read})))


def test_a_later_condition_is_refused():
    later = sf.SteeringVector({sf.resid_post[4]: torch.ones(2)})
    text = (
        "A condition at resid_post[4] cannot gate an operator at resid_post[3], which comes before it in the forward "
        "pass; read the condition at the same or an earlier site."
    )
    refused(text, lambda: chosen(sf.cosine_above(later, 0.0)))
    several = sf.SteeringVector({0: torch.ones(2), 1: torch.ones(2)})
    text = (
        "The condition's vector has no direction at resid_post[3] and several elsewhere; select the one to read with "
        "vector.select(site)."
    )
    refused(text, lambda: chosen(sf.cosine_above(several, 0.0)))


def test_a_condition_follows_the_operator_site_where_it_has_a_direction():
    both = sf.SteeringVector({POST[3]: torch.tensor([1.0, 0.0]), POST[0]: torch.tensor([0.0, 1.0])})
    assert chosen(sf.projection_above(both, 2.0)) == [[False] * 3, [True, True, False]]


def test_resolve_reaches_conditions():
    v = sf.SteeringVector({-1: torch.ones(2)})
    op = sf.when(~(sf.cosine_above(v, 0.1) | sf.probe(v)), sf.add(v)).resolve(5)
    assert op.reads == op.sites == (POST[4],)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_conditions_are_computed_in_at_least_float32(dtype):
    h = torch.full((1, 1, 2), 300.0, dtype=dtype)
    v = sf.SteeringVector({0: torch.full((2,), 300.0, dtype=torch.float16)})
    add = sf.add(v, 1e-3)
    for condition in (sf.cosine_above(v, 0.99), sf.projection_above(v, 424.0), sf.probe(v, -179999.0)):
        out = sf.when(condition, add)(h, sf.Info.of(h))
        assert torch.equal(out, add(h, sf.Info.of(h))) and out.dtype == dtype


def test_refusals():
    finite = "it must be finite in float32: pass numbers from -3.4e38 to 3.4e38."
    text = (
        "A condition is needed, not 3 of type int; use sf.cosine_above(v, 0.3), sf.projection_above(v, 4.0) or "
        "sf.probe(v, bias), combined with | & ~."
    )
    refused(text, lambda: sf.when(3, ADD))
    refused(text, lambda: sf.probe(V) | 3)
    refused(text, lambda: sf.probe(V) & 3)
    for make in (sf.cosine_above, sf.projection_above):
        name = make.__name__
        text = f"The threshold of {name} is one number, not a tensor of shape [2]."
        refused(text, lambda make=make: make(V, torch.ones(2)), sf.ShapeError)
        refused(f"The threshold of {name} is nan; {finite}", lambda make=make: make(V, float("nan")))
        with pytest.raises(sf.SteerError, match=f"^{name} takes a SteeringVector, not a Tensor; "):
            make(H, 0.0)
    refused(f"The bias of probe is inf; {finite}", lambda: sf.probe(V, float("inf")))
    wide = sf.SteeringVector({POST[3]: torch.ones(3)})
    with pytest.raises(
        sf.ShapeError, match=re.escape("The direction at resid_post[3] has width 3, but the hidden state")
    ):
        chosen(sf.probe(wide))
