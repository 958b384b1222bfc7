"""Every row of the batch its own operator."""

import re

import pytest
import torch

import steerfn as sf
from steerfn.values._struct import static, struct

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
    info = sf.Info(
        site=POST[0], tokens=sf.operators.Tokens(plain.tokens.index, plain.tokens.prompt_length, None, copies=3)
    )
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


# -- rows at once --------------------------------------------------------------------------------


def stackable(v, w):
    """Two operators of each kind that differ in numbers only."""
    return {
        "add": (sf.add(v, 2.0), sf.add(w, -1.0)),
        "ablate": (sf.ablate(v), sf.ablate(w)),
        "project": (sf.project(v), sf.project(w)),
        "clamp": (sf.clamp(v, 3.0), sf.clamp(w, -1.0)),
        "bounds": (sf.clamp(v, min=0.5), sf.clamp(w, max=-0.5)),
        "rotate": (sf.rotate(v, 0.5), sf.rotate(w, -1.0)),
        "plane": (sf.rotate(v, 0.5, plane=w), sf.rotate(w, 1.5, plane=v)),
        "at": (sf.at(sf.positions(-1), sf.add(v)), sf.at(sf.positions(-1), sf.add(w, 3.0))),
        "scheduled": (sf.scheduled(sf.add(v), [1.0, 2.0]), sf.scheduled(sf.add(w), [0.5, 0.0])),
        "renorm": (sf.renorm(sf.add(v)), sf.renorm(sf.add(w, 2.0))),
        "chain": (sf.chain(sf.add(v), sf.clamp(w, 1.0)), sf.chain(sf.add(w), sf.clamp(v, 2.0))),
        "nested": tuple(sf.at(~sf.generated, sf.renorm(sf.chain(sf.add(u), sf.rotate(v, 0.3)))) for u in (v, w)),
    }


EXACT = ("add", "at", "scheduled", "renorm")
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def groups(op):
    """How many bound operators act on the rows at the first site."""
    bound = op.bind(POST[0])
    return len(getattr(bound, "groups", (bound,)))


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("kind", stackable(V, W))
def test_operators_that_differ_in_numbers_run_as_one(kind, copies):
    first, second = stackable(V, W)[kind]
    hidden = torch.randn(4 * copies, 5, 4, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([2, 5, 3, 4]).repeat_interleave(copies)
    tokens = sf.Info.of(hidden, prompt_length=lengths).tokens
    info = sf.Info(site=POST[0], tokens=sf.operators.Tokens(tokens.index, tokens.prompt_length, None, copies=copies))
    for ops in ([first, second, second, first], [second, None, first, None], [None, first, None, None]):
        op = sf.rows(ops)
        assert groups(op) == 1
        out = op(hidden, info)
        for i in range(len(hidden)):
            h, each = hidden[i : i + 1], ops[i // copies]
            if each is None:
                assert torch.equal(out[i : i + 1].view(torch.int32), h.view(torch.int32))
                continue
            expected = each(h, sf.Info.of(h, prompt_length=lengths[i]))
            assert not torch.equal(expected, h)
            torch.testing.assert_close(out[i : i + 1], expected, **({"rtol": 0, "atol": 0} if kind in EXACT else NEAR))


def test_a_zero_direction_among_rows_changes_nothing():
    nothing = sf.SteeringVector({POST[0]: torch.zeros(4)})
    for make in (sf.add, sf.ablate, sf.project, lambda v: sf.clamp(v, 2.0), lambda v: sf.rotate(v, 1.0)):
        op = sf.rows([make(V), make(nothing), make(W)])
        assert groups(op) == 1
        out = op(H, INFO)
        assert torch.equal(out[1].view(torch.int32), H[1].view(torch.int32))
        assert not (out[[0, 2]] == H[[0, 2]]).all()


def test_what_is_not_the_same_arithmetic_stays_apart():
    wide = sf.SteeringVector({POST[0]: V[0].double()})
    condition = sf.projection_above(V, 0.0)
    for one, other in [
        (sf.at(sf.prompt, sf.add(V)), sf.at(sf.generated, sf.add(V))),
        (sf.scheduled(sf.add(V), [1.0]), sf.scheduled(sf.add(V), [1.0, 0.5])),
        (sf.scheduled(sf.add(V), lambda t: 0.5**t), sf.scheduled(sf.add(V), lambda t: 0.9**t)),
        (sf.ablate(V), sf.project(V)),
        (sf.ablate(V), sf.ablate(wide)),
        (sf.chain(sf.add(V), sf.add(W)), sf.chain(sf.add(V), sf.add(W), sf.add(W))),
        (sf.when(condition, sf.add(V)), sf.when(condition, sf.add(W))),
        (sf.add(V, torch.tensor([1.0])), sf.add(V, torch.tensor([2.0]))),
    ]:
        ops = [one, other, None]
        assert groups(sf.rows(ops)) == 2
        out = sf.rows(ops)(H, INFO)
        for i, op in enumerate(ops):
            assert torch.equal(out[i : i + 1], alone(op, i))


@struct
class Counting(sf.Operator):
    """Adds a vector and notes how it was bound and which states it met."""

    vector: sf.SteeringVector
    seen: list = static()

    def bind(self, site, device=None):
        self.seen.append("bound")
        delta = self.vector[site]

        def apply(hidden, info):
            assert info.tokens.index.shape == hidden.shape[:2]
            self.seen.append(tuple(hidden.shape))
            return hidden + delta

        return apply


def test_an_operator_of_many_rows_is_bound_once_and_unsteered_rows_are_not_computed():
    seen = []
    op = Counting(V, seen)
    out = sf.rows([op, None, op])(H, INFO)
    assert seen == ["bound", (2, 5, 4)]
    assert torch.equal(out[1], H[1]) and torch.equal(out[[0, 2]], H[[0, 2]] + V[0])
    seen.clear()
    sf.rows([op, op, op])(H, INFO)
    assert seen == ["bound", (3, 5, 4)]
    assert len(sf.rows([op, None, op, sf.add(W)]).vectors) == 2


def test_a_number_for_one_row_goes_with_an_operator_of_many_rows():
    for op in (sf.add(V, torch.tensor([3.0])), sf.when(True, sf.clamp(V, torch.tensor([3.0])))):
        out = sf.rows([op, None, op])(H, INFO)
        for i in (0, 2):
            assert torch.equal(out[i : i + 1], alone(op, i))
    two = sf.add(V, torch.tensor([1.0, 2.0]))
    with pytest.raises(sf.ShapeError, match="There are 2 strengths .*but the batch has 1 rows"):
        sf.rows([two, two])(H[:2], sf.Info.of(H[:2]))


def test_rows_in_rows():
    inner = sf.rows([sf.ablate(V)])
    out = sf.rows([inner, sf.add(W), inner])(H, INFO)
    for i, op in enumerate([sf.ablate(V), sf.add(W), sf.ablate(V)]):
        assert torch.equal(out[i : i + 1], alone(op, i))


def test_conditions_of_a_row_read_that_row():
    before = sf.SteeringVector({sf.resid_pre[0]: torch.ones(4)})
    read = torch.arange(3.0)[:, None, None].expand(3, 5, 4) - 1.5
    ops = [sf.when(sf.projection_above(before, 0.0), sf.add(v)) for v in (V, W)]
    info = sf.Info(site=POST[0], tokens=INFO.tokens, reads={sf.resid_pre[0]: read})
    out = sf.rows([ops[0], None, ops[1]])(H, info)
    assert torch.equal(out, torch.stack([H[0], H[1], H[2] + W[0]]))
    out = sf.rows([ops[1], ops[0], ops[1]])(H, info)
    assert torch.equal(out, torch.stack([H[0], H[1], H[2] + W[0]]))


def test_a_condition_on_the_prompt_is_answered_for_its_row():
    ahead = sf.SteeringVector({POST[0]: torch.tensor([1.0, 0.0, 0.0, 0.0])})
    hidden = H.clone()
    hidden[:, 4, 0] = torch.tensor([1.0, -1.0, 2.0])
    op = sf.when(sf.on_prompt(sf.projection_above(ahead, 0.0)), sf.add(V))
    out = sf.rows([op, op, None])(hidden, sf.Info.of(hidden))
    assert torch.equal(out, torch.stack([hidden[0] + V[0], hidden[1], hidden[2]]))


@pytest.mark.parametrize(
    "make",
    [
        lambda a: [sf.add(V, a), None, sf.add(W)],
        lambda a: [sf.clamp(V, a), sf.clamp(W, 1.0), None],
        lambda a: [sf.at(sf.generated, sf.add(V, a)), None, sf.rotate(W, a)],
        lambda a: [sf.scheduled(sf.add(V, a), [1.0, 0.5]), sf.scheduled(sf.add(W), [0.0, 2.0]), sf.ablate(W)],
        lambda a: [sf.renorm(sf.add(V, a)), sf.when(sf.projection_above(W, 0.0), sf.add(V, a)), sf.ablate(W)],
    ],
    ids=["one addition", "one clamp", "two", "schedules", "three"],
)
def test_transforms_go_through_rows(make):
    def f(a):
        return sf.rows(make(a))(H, INFO)

    alphas = torch.tensor([0.5, -1.0, 2.0])
    together = torch.func.vmap(f)(alphas)
    torch.testing.assert_close(together, torch.stack([f(a) for a in alphas]), **NEAR)
    at, step = torch.tensor(0.7, dtype=torch.float64), 1e-3
    slope = (f(at + step).double() - f(at - step).double()) / (2 * step)
    _, forward = torch.func.jvp(f, (at,), (torch.ones_like(at),))
    torch.testing.assert_close(forward.double(), slope, rtol=1e-2, atol=1e-2)
    backward = torch.func.grad(lambda a: f(a).sum())(at)
    torch.testing.assert_close(backward.double(), slope.sum(), rtol=1e-2, atol=1e-2)


def test_rows_are_a_pytree():
    op = sf.rows([sf.add(V, 1.0), None, sf.ablate(W), sf.add(V, 1.0)])
    doubled = torch.utils._pytree.tree_map(lambda t: 2 * t, op)
    h = torch.cat([H, H[:1]])
    out = doubled(h, sf.Info.of(h))
    assert torch.equal(out[0], h[0] + 4 * V[0]) and torch.equal(out[1], h[1]) and torch.equal(out[3], h[3] + 4 * V[0])
    gradient = torch.func.grad(lambda o: o(h, sf.Info.of(h)).sum())(op)
    assert torch.allclose(gradient.operators[0].vector[0], torch.full((4,), 5.0))


def test_pitfall_29_an_unsteered_row_selects_nothing(tiny):
    ids, v = torch.randint(3, 99, (2, 6), generator=torch.Generator().manual_seed(1)), torch.ones(32)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    late = sf.at(sf.positions(4), sf.add(sf.SteeringVector({POST[1]: v})))
    with (
        pytest.warns(sf.SteerWarning, match=r"The scope positions\(4\) selected no token"),
        sf.steer(tiny, sf.rows([late, None])),
    ):
        tiny(ids, attention_mask=mask)
    with sf.steer(tiny, sf.rows([None, late])):
        tiny(ids, attention_mask=mask)
