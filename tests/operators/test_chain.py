"""chain, identity, renorm."""

import re

import pytest
import torch

import steerfn as sf

V = sf.SteeringVector({sf.resid_post[0]: torch.tensor([1.0, 2.0, -1.0]), sf.attn_out[1]: torch.ones(3)})
W = sf.SteeringVector({sf.resid_post[0]: torch.tensor([0.0, 1.0, 5.0]), sf.mlp_out[-1]: torch.ones(3)})
H = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
INFO = sf.Info.of(H)


def test_chain_is_one_after_the_other():
    out = sf.chain(sf.add(V, 2.0), sf.ablate(W), sf.add(W))(H, INFO)
    u = W[0] / W[0].norm()
    by_hand = H + 2 * V[0]
    by_hand = by_hand - (by_hand @ u).unsqueeze(-1) * u + W[0]
    assert torch.allclose(out, by_hand, atol=1e-6)
    other_order = sf.chain(sf.ablate(W), sf.add(V, 2.0), sf.add(W))(H, INFO)
    assert not torch.allclose(out, other_order)


def test_each_part_acts_at_its_own_sites():
    op = sf.chain(sf.add(V), sf.add(W))
    assert op.sites == (sf.resid_post[0], sf.attn_out[1], sf.mlp_out[-1])
    assert op.vectors == (V, W) and op.reads == ()
    assert torch.equal(op(H, sf.Info.of(H, sf.attn_out[1])), H + 1)
    assert op(H, sf.Info.of(H, sf.resid_mid[0])) is H
    assert op.resolve(4).sites == (sf.resid_post[0], sf.attn_out[1], sf.mlp_out[3])


def test_identity():
    assert sf.identity(H, INFO) is H and sf.chain()(H, INFO) is H
    assert sf.identity.sites == sf.identity.vectors == () and sf.identity.bind(sf.resid_post[0]) is None


def test_chain_refuses_what_is_no_operator():
    for bad in (V, H, None, 2.0):
        text = f"An operator is needed, not a {type(bad).__name__}; wrap a vector as sf.add(v, alpha) or sf.ablate(v)."
        for make in (
            lambda x: sf.chain(sf.identity, x),
            sf.renorm,
            lambda x: sf.at(sf.prompt, x),
            lambda x: sf.rows([x]),
        ):
            if not (bad is None and make(sf.identity).__class__.__name__ == "Rows"):
                with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
                    make(bad)


def test_renorm_by_hand():
    out = sf.renorm(sf.add(V, 3.0))(H, INFO)
    for b in range(2):
        for t in range(3):
            moved = H[b, t] + 3 * V[0]
            assert torch.allclose(out[b, t], moved * H[b, t].norm() / moved.norm(), atol=1e-6)


def test_renorm_of_zero_states_and_to_zero():
    h = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 4.0, -2.0]]])
    assert torch.equal(sf.renorm(sf.add(V))(h, sf.Info.of(h))[0, 0], torch.zeros(3))
    assert torch.equal(sf.renorm(sf.add(V, -2.0))(h, sf.Info.of(h))[0, 1], torch.zeros(3))


@pytest.mark.parametrize(("dtype", "entry"), [(torch.float16, 3e4), (torch.float32, 1e30), (torch.float32, 1e-30)])
def test_renorm_neither_overflows_nor_vanishes(dtype, entry):
    """Pitfall 14: the squares of these entries do not fit."""
    h = torch.full((1, 1, 3), entry, dtype=dtype)
    out = sf.renorm(sf.ablate(V))(h, sf.Info.of(h))
    assert torch.isfinite(out).all()
    assert float(out.double().norm()) == pytest.approx(float(h.double().norm()), rel=2e-3)


def test_renorm_leaves_unsteered_tokens_bitwise():
    out = sf.renorm(sf.at(sf.positions(1), sf.add(V)))(H, INFO)
    assert torch.equal(out[:, [0, 2]], H[:, [0, 2]]) and not torch.equal(out[:, 1], H[:, 1])


def test_renorm_leaves_unsteered_rows_bitwise_however_they_lie_in_memory():
    """A sum adds in another order over another layout, so equal states would get norms one rounding apart."""
    for width in (17, 32, 100, 128):
        h = torch.randn(width, 3, 2, generator=torch.Generator().manual_seed(width)).permute(2, 1, 0)
        v = sf.SteeringVector({sf.resid_post[0]: torch.ones(width)})
        out = sf.renorm(sf.rows([None, sf.ablate(v)]))(h, sf.Info.of(h))
        assert torch.equal(out[0], h[0]) and not torch.equal(out[1], h[1])
