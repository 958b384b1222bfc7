"""Every operator under autocast, and subclasses of `sf.Operator` as people write them."""

import copy
import dataclasses
import pickle
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

import steerfn as sf

POST = sf.resid_post
RANDOM = torch.Generator().manual_seed(0)
H = 5 * torch.randn(2, 6, 64, generator=RANDOM)
V, W = (sf.SteeringVector({POST[1]: torch.randn(64, generator=RANDOM)}) for _ in range(2))
INFO = sf.Info.of(H, POST[1])
# A threshold between two projections that are equal in bfloat16, so that its rounding decides otherwise.
MIDDLE = float((H[0] @ V.unit()[1]).sort().values[2:4].mean())
OPERATORS = {
    "add": lambda: sf.add(V, torch.tensor([1.0, 2.0])),
    "ablate": lambda: sf.ablate(V),
    "project": lambda: sf.project(V),
    "clamp": lambda: sf.clamp(V, torch.tensor([3.0, -3.0])),
    "rotate": lambda: sf.rotate(V, 0.7),
    "plane": lambda: sf.rotate(V, 0.7, plane=W),
    "renorm": lambda: sf.renorm(sf.ablate(V)),
    "chain": lambda: sf.chain(sf.clamp(V, 1.0), sf.ablate(W)),
    "rows": lambda: sf.rows([sf.ablate(V), sf.ablate(W)]),
    "scheduled": lambda: sf.scheduled(sf.ablate(V), [0.5]),
    "projection": lambda: sf.when(sf.projection_above(V, MIDDLE), sf.add(W)),
    "cosine": lambda: sf.when(sf.cosine_above(V, 0.01), sf.add(W)),
    "probe": lambda: sf.when(sf.probe(V, -MIDDLE), sf.add(W)),
    "on_prompt": lambda: sf.when(sf.on_prompt(sf.projection_above(V, 0.0), by="mean"), sf.ablate(W)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_pitfall_46_autocast_changes_no_operator(name):
    expected = OPERATORS[name]()(H, INFO)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(OPERATORS[name]()(H, INFO), expected)
    if name == "ablate":
        assert (expected @ V.unit()[1]).abs().max() < 1e-4


def test_autocast_in_a_steered_model_under_transforms_and_compiled(tiny):
    """Captured after ablation, nothing of the direction is left beyond float32, wherever the model computes in bf16."""
    v = sf.SteeringVector({POST[1]: torch.randn(32, generator=RANDOM)})
    ids, u = torch.arange(3, 9).unsqueeze(0), v.unit()[1].double()

    def left(d):
        out = sf.functional(tiny)(sf.ablate(sf.SteeringVector({POST[1]: d})), ids, output_hidden_states=True)
        return (out.hidden_states[2].double() @ u).abs().max()

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        state = sf.capture(tiny, 1)
        assert (state(ids)[1][POST[1]].double() @ u).abs().max() > 1e-2
        with sf.steer(tiny, sf.ablate(v)):
            assert (state(ids)[1][POST[1]].double() @ u).abs().max() < 1e-4
        assert left(v[1]) < 1e-4
        with sdpa_kernel(SDPBackend.MATH):
            assert torch.func.vmap(left)(torch.stack([v[1], 2 * v[1]])).max() < 1e-4
        torch._dynamo.reset()
        compiled = torch.compile(lambda op, h: op(h, sf.Info.of(h, POST[1])), backend="eager", fullgraph=True)
        h = torch.randn(1, 3, 32, generator=RANDOM)
        assert (compiled(sf.ablate(v), h).double() @ u).abs().max() < 1e-5
        torch._dynamo.reset()


def test_a_struct_lists_its_parts_once_and_its_copies_their_own():
    op = sf.chain(sf.add(V), sf.when(sf.cosine_above(W, 0.1), sf.ablate(V)))
    assert op.sites is op.sites and op.reads is op.reads and op.vectors is op.vectors == (V, W, V)
    for back in (copy.copy(op), copy.deepcopy(op), pickle.loads(pickle.dumps(op))):
        assert back.sites == op.sites and back.reads == op.reads
        assert back.vectors[0] is back.operators[0].vector and back.vectors[0].identical(V)
    doubled = tree_map(lambda tensor: 2 * tensor, op)
    assert doubled.vectors[0].allclose(2 * V) and op.vectors[0] is V
    moved = sf.add(sf.SteeringVector({-1: V[1]}))
    assert moved.sites == (POST[-1],) and moved.resolve(4).sites == (POST[3],)


def test_a_plain_operator_that_changes_is_asked_anew():
    op = Holds(V)
    assert op.vectors == (V,) and op.sites == (POST[1],)
    op.vector = sf.SteeringVector({2: V[1]})
    assert op.vectors == (op.vector,) and op.sites == (POST[2],)


class Declares(sf.Operator):
    sites = POST[-1]

    def bind(self, site, device=None):
        return lambda hidden, info: 2 * hidden


class Assigns(sf.Operator):
    def __init__(self):
        self.sites = [2]

    def bind(self, site, device=None):
        return lambda hidden, info: 2 * hidden


class Calls(sf.Operator):
    sites = (POST[2],)

    def __call__(self, hidden, info):
        return 2 * hidden


class Holds(sf.Operator):
    def __init__(self, vector):
        self.vector = vector

    def bind(self, site, device=None):
        return lambda hidden, info: hidden + self.vector[site] * hidden


@dataclasses.dataclass(frozen=True)
class Data(sf.Operator):
    factor: float
    sites: tuple = (POST[2],)

    def bind(self, site, device=None):
        return lambda hidden, info: self.factor * hidden


PLAIN = {
    "declares": Declares,
    "assigns": Assigns,
    "calls": Calls,
    "holds": lambda: Holds(sf.SteeringVector({-1: torch.ones(32)})),
    "data": lambda: Data(2.0),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_subclass_acts_at_its_own_sites_only(tiny, name):
    ids, read = torch.arange(3, 9).unsqueeze(0), [POST[1], POST[2]]
    with torch.no_grad():
        before = sf.capture(tiny, read)(ids)[1]
        # With a neighbour at another site: a plain `bind` does not ask where it is.
        op = sf.chain(PLAIN[name](), sf.add(sf.SteeringVector({POST[1]: torch.zeros(32)})))
        for each in (PLAIN[name](), sf.at(sf.everywhere, op)):
            with sf.steer(tiny, each):
                after = sf.capture(tiny, read)(ids)[1]
            assert torch.equal(after[POST[1]], before[POST[1]])
            assert torch.allclose(after[POST[2]], 2 * before[POST[2]])


def test_a_subclass_that_cannot_work_says_how_to_write_it(tiny):
    def made(**body):
        return type("Mine", (sf.Operator,), body)

    for make, text in [
        (lambda: made(sites=(POST[1],), bind=lambda self, site: None), "Mine.bind is a function (self, site), not one"),
        (lambda: made(bind=lambda self, site, device=None: None)(), "Mine acts at no site: it declares none"),
        (lambda: made(sites=(POST[1],))(), "Mine does nothing: it has no `bind`"),
        (lambda: made(sites=(POST[1],), bind=lambda self, site, device=None: 2)(), "Mine.bind returned a int"),
        (
            lambda: made(sites=(POST[1],), bind=lambda self, site, device=None: lambda hidden: hidden)(),
            "What Mine.bind returns is a function (hidden), not one of a hidden state",
        ),
    ]:
        with pytest.raises(sf.SteerError, match=f"^{re.escape(text)}.*class Double"), sf.steer(tiny, make()):
            pass
    computed = made(sites=property(lambda self: (POST[-1],)), bind=lambda self, site, device=None: None)
    with pytest.raises(sf.SteerError, match="The sites that Mine computes are"), sf.steer(tiny, computed()):
        pass
