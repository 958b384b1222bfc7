"""Every row of the batch its own operator."""

import re

import pytest
import torch

import steerfn as sf

POST = sf.resid_post
V, W = (sf.SteeringVector({POST[0]: torch.randn(4, generator=torch.Generator().manual_seed(s))}) for s in (1, 2))
H = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([2, 5, 3])
INFO = sf.Info.of(H, prompt_length=LENGTHS)


def alone(op, i, hidden=H):
    h = hidden[i : i + 1]
    return h if op is None else op(h, sf.Info.of(h, prompt_length=LENGTHS[i]))


@pytest.mark.parametrize(
    "ops",
    [
        [sf.add(V, 2.0), None, sf.add(W, -1.0)],
        [sf.add(V), sf.ablate(W), None],
        [sf.at(sf.generated, sf.add(V)), sf.scheduled(sf.add(W), [1.0, 2.0]), sf.at(sf.positions(-1), sf.ablate(V))],
        [sf.when(sf.projection_above(V, 0.0), sf.add(W)), sf.identity, sf.renorm(sf.add(V))],
        [None, None, sf.chain(sf.add(V), sf.rotate(W, 1.0))],
        [sf.add(V, torch.tensor([3.0])), None, sf.add(W)],
    ],
    ids=["adds", "mixed", "scopes", "conditions", "chain", "one number for one row"],
)
def test_each_row_is_what_it_is_alone(ops):
    out = sf.rows(ops)(H, INFO)
    for i, op in enumerate(ops):
        assert torch.equal(out[i : i + 1], alone(op, i))


def test_additions_become_one_and_are_the_same():
    h = torch.cat([H, -0.0 * H.abs()], 1)
    ops = [sf.add(V, 2.0), None, sf.add(sf.SteeringVector({sf.attn_out[1]: torch.ones(4)}))]
    op = sf.rows(ops)
    assert type(op.bind(POST[0])).__name__ == "Shift"
    out = op(h, sf.Info.of(h))
    assert torch.equal(out[0], h[0] + 2 * V[0])
    assert torch.equal(out[1:].view(torch.int32), h[1:].view(torch.int32))
    assert torch.equal(op(h, sf.Info.of(h, sf.attn_out[1]))[2], h[2] + 1)
    assert op(h, sf.Info.of(h, sf.mlp_out[1])) is h
    assert op.sites == (POST[0], sf.attn_out[1])


@pytest.mark.parametrize("ops", [[sf.add(V), sf.add(W, 3.0)], [sf.ablate(V), sf.add(W, 3.0)]], ids=["adds", "mixed"])
def test_copies_of_a_prompt_get_its_operator(ops):
    h = torch.cat([H, H + 1])
    plain = sf.Info.of(h)
    info = sf.Info(site=POST[0], tokens=sf.Tokens(plain.tokens.index, plain.tokens.prompt_length, None, copies=3))
    out = sf.rows(ops)(h, info)
    for i in range(6):
        one = h[i : i + 1]
        assert torch.allclose(out[i : i + 1], ops[i // 3](one, sf.Info.of(one)), atol=1e-6)


def test_padding_stays_with_its_row():
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    ops = [
        sf.at(sf.positions(0), sf.add(V)),
        sf.at(sf.last_prompt_token, sf.ablate(V)),
        sf.at(sf.positions(-2), sf.add(W)),
    ]
    out = sf.rows(ops)(H, sf.Info.of(H, attention_mask=mask))
    changed = ((out != H).any(-1) & mask.bool()).nonzero().tolist()
    assert changed == [[0, 1], [1, 2], [2, 3]]


def test_another_number_of_rows_is_refused():
    for ops in ([sf.add(V), None], [sf.ablate(V), None]):
        with pytest.raises(sf.ShapeError, match="2 .*but the batch has 3 rows; pass one for each row"):
            sf.rows(ops)(H, INFO)


def test_refusals():
    for bad in ([], (), sf.add(V), "ab", None, 3, iter([sf.add(V)])):
        text = f"rows takes a non-empty list with an operator or None for each row, not {bad!r:.80}."
        with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}$"):
            sf.rows(bad)
    with pytest.raises(sf.SteerError, match="^An operator is needed, not a SteeringVector"):
        sf.rows([V])


def test_resolve_and_parts():
    v = sf.SteeringVector({-1: torch.ones(4)})
    op = sf.rows([sf.add(v), None, sf.when(sf.probe(v), sf.ablate(v))])
    assert op.resolve(3).sites == (POST[2],) and op.resolve(3).reads == (POST[2],) and len(op.vectors) == 3
