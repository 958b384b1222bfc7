"""add, ablate, project, clamp, rotate against loops over tokens in numpy, and what they refuse."""

import re
from functools import partial

import numpy as np
import pytest
import torch

import steerfn as sf

POST = sf.resid_post


def state(shape=(2, 3, 5), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vector(width=5, seed=1, scale=3.0):
    return sf.SteeringVector({POST[0]: scale * state((width,), seed)})


def token_by_token(function, h, v, numbers=(0.0,)):
    """`function(h, u, number of the row)` at every token, in float64."""
    h, d = h.double().numpy(), v[0].double().numpy()
    out = np.empty_like(h)
    for b in range(h.shape[0]):
        for t in range(h.shape[1]):
            out[b, t] = function(h[b, t], d / np.linalg.norm(d), numbers[b % len(numbers)])
    return torch.from_numpy(out)


def close(actual, expected, tolerance=1e-5):
    assert torch.allclose(actual.double(), expected, rtol=tolerance, atol=tolerance), (
        (actual.double() - expected).abs().max()
    )


def refused(text, make, error=sf.SteerError):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        make()


def towards(h, u, angle):
    """tan(phi' / 2) = exp(-angle) tan(phi / 2) in the plane of h and u."""
    norm = np.linalg.norm(h)
    along = h @ u
    across = h - along * u
    phi = np.arctan2(np.linalg.norm(across), along)
    turned = 2 * np.arctan(np.exp(-angle) * np.tan(phi / 2))
    return norm * (np.cos(turned) * u + np.sin(turned) * across / np.linalg.norm(across))


FORMULAS = {
    "ablate": (sf.ablate, lambda h, u, _: h - (h @ u) * u),
    "project": (sf.project, lambda h, u, _: (h @ u) * u),
    "clamp": (lambda v: sf.clamp(v, 2.0), lambda h, u, _: h + (2.0 - h @ u) * u),
    "min": (lambda v: sf.clamp(v, min=0.2), lambda h, u, _: h + (max(h @ u, 0.2) - h @ u) * u),
    "max": (lambda v: sf.clamp(v, max=-0.1), lambda h, u, _: h + (min(h @ u, -0.1) - h @ u) * u),
    "both": (lambda v: sf.clamp(v, min=-0.3, max=0.3), lambda h, u, _: h + (np.clip(h @ u, -0.3, 0.3) - h @ u) * u),
    "rotate": (lambda v: sf.rotate(v, 0.8), lambda h, u, _: towards(h, u, 0.8)),
    "rotate away": (lambda v: sf.rotate(v, -1.7), lambda h, u, _: towards(h, u, -1.7)),
    "rotate far": (lambda v: sf.rotate(v, 25.0), lambda h, u, _: towards(h, u, 25.0)),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 5), (3, 1, 5)])
def test_formulas(name, shape):
    make, formula = FORMULAS[name]
    h, v = state(shape), vector()
    close(make(v)(h, sf.Info.of(h)), token_by_token(formula, h, v))


@pytest.mark.parametrize("alpha", [2, -0.5, np.float32(0.25), np.int64(3), torch.tensor(1.5), torch.tensor(2)])
def test_add(alpha):
    h, v = state(), vector()
    close(sf.add(v, alpha)(h, sf.Info.of(h)), h.double() + float(alpha) * v[0].double())
    close(sf.add(v)(h, sf.Info.of(h)), h.double() + v[0].double())


def test_rotate_in_a_plane():
    h, v = state((2, 3, 5)), vector()
    w = vector(seed=7)
    u, second = (x[0].double().numpy() for x in (v.unit(), w))
    second = second - (second @ u) * u
    second /= np.linalg.norm(second)

    def turned(x, _u, _n):
        a, b = x @ u, x @ second
        rest = x - a * u - b * second
        return rest + (a * np.cos(0.6) + b * np.sin(0.6)) * u + (b * np.cos(0.6) - a * np.sin(0.6)) * second

    close(sf.rotate(v, 0.6, plane=w)(h, sf.Info.of(h)), token_by_token(turned, h, v))
    assert not torch.allclose(sf.rotate(v, 0.6, plane=w)(h, sf.Info.of(h)), sf.rotate(v, 0.6)(h, sf.Info.of(h)))
    quarter = sf.rotate(v, torch.pi / 2, plane=w)(w[0].expand(1, 1, 5), sf.Info.of(h[:1, :1]))
    overlap = float(w[0] @ v.unit()[0])
    expected = (w[0].double() - overlap * torch.from_numpy(u)).norm() * torch.from_numpy(u)
    close(quarter[0, 0], expected - overlap * torch.from_numpy(second), 1e-4)


def test_rotate_near_the_poles():
    """States along the direction stay, and one just beside the opposite pole keeps its norm."""
    v = sf.SteeringVector({0: torch.tensor([1.0, 0.0])})
    h = torch.tensor([[[2.0, 0.0], [-2.0, 0.0], [-2.0, 1e-6], [0.0, 0.0], [1e-30, 1e-30], [1e30, 1e30]]])
    info = sf.Info.of(h)
    for angle in (0.1, 3.0, 12.0, -12.0, 50.0, 1e6, -1e30):
        out = sf.rotate(v, angle)(h, info)
        assert torch.isfinite(out).all()
        assert torch.equal(out[0, :2], h[0, :2]) and torch.equal(out[0, 3], h[0, 3])
        assert torch.allclose(out.double().norm(dim=-1), h.double().norm(dim=-1), rtol=1e-5)
    arrived = sf.rotate(v, 30.0)(h, info)
    assert torch.allclose(arrived[0, 2], torch.tensor([2.0, 0.0]), atol=1e-5)


NUMBERS = torch.tensor([2.0, -1.0, 0.0])


@pytest.mark.parametrize(
    ("make", "formula"),
    [
        (lambda v, n: sf.add(v, n), lambda h, u, n: h + n * vector()[0].double().numpy()),
        (lambda v, n: sf.clamp(v, n), lambda h, u, n: h + (n - h @ u) * u),
        (lambda v, n: sf.clamp(v, min=n), lambda h, u, n: h + (max(n, h @ u) - h @ u) * u),
        (lambda v, n: sf.clamp(v, max=n), lambda h, u, n: h + (min(n, h @ u) - h @ u) * u),
        (lambda v, n: sf.rotate(v, n), lambda h, u, n: towards(h, u, n)),
    ],
    ids=["add", "clamp", "min", "max", "rotate"],
)
@pytest.mark.parametrize("seq", [1, 4])
def test_one_number_for_each_row(make, formula, seq):
    h, v = state((3, seq, 5)), vector()
    expected = token_by_token(formula, h, v, [float(n) for n in NUMBERS])
    close(make(v, NUMBERS)(h, sf.Info.of(h)), expected)
    # With beams, consecutive rows hold one prompt and get its number.
    tokens = sf.Info.of(h).tokens
    copies = sf.Info(site=POST[0], tokens=sf.operators.Tokens(tokens.index, tokens.prompt_length, None, copies=3))
    close(make(v, NUMBERS[:1])(h, copies), token_by_token(formula, h, v, [2.0]))
    with pytest.raises(sf.ShapeError, match="2 .*but the batch has 3 rows; pass one"):
        make(v, NUMBERS[:2])(h, sf.Info.of(h))


def test_each_site_gets_its_own_direction_and_others_none():
    v = sf.SteeringVector({0: torch.ones(5), sf.attn_out[1]: 2 * torch.ones(5)})
    h = state()
    for make in (sf.add, sf.ablate, sf.project, lambda v: sf.clamp(v, 1.0), lambda v: sf.rotate(v, 1.0)):
        assert make(v).sites == v.sites and make(v).vectors == (v,) and make(v).reads == ()
        assert make(v)(h, sf.Info.of(h, sf.mlp_out[0])) is h
        assert make(v).bind(sf.mlp_out[0]) is None
    assert torch.equal(sf.add(v)(h, sf.Info.of(h, sf.attn_out[1])), h + 2)
    assert torch.equal(sf.add(v)(h, sf.Info.of(h, POST[0])), h + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_delta_is_computed_in_float32(dtype):
    v = sf.SteeringVector({0: torch.tensor([1.0, 3.0])})
    h = torch.ones(1, 1, 2, dtype=dtype)
    alpha = 1 + 2**-12  # lost if alpha or v were cast first
    expected = h + (torch.tensor([1.0, 3.0], dtype=torch.float64) * alpha).to(dtype)
    assert torch.equal(sf.add(v, alpha)(h, sf.Info.of(h)), expected)


@pytest.mark.parametrize("name", ["ablate", "project", "clamp", "rotate"])
def test_large_half_precision_states_do_not_overflow(name):
    """Pitfall 14: <h, v> of these is beyond fp16."""
    h = torch.full((1, 2, 64), 200.0, dtype=torch.float16)
    v = sf.SteeringVector({0: torch.linspace(1, 300, 64).half()})
    expected = token_by_token(FORMULAS[name][1], h, v)
    close(FORMULAS[name][0](v)(h, sf.Info.of(h)) / 200, expected / 200, 4e-3)


def test_resolve_counts_layers_from_zero():
    v, w = (sf.SteeringVector({-1: state((5,), seed)}) for seed in (1, 2))
    for op in (sf.add(v, 2.0), sf.ablate(v), sf.project(v), sf.clamp(v, min=1.0), sf.rotate(v, 1.0, plane=w)):
        assert op.resolve(4).sites == (POST[3],) and op.sites == (POST[-1],)
        assert type(op.resolve(4)) is type(op)
    assert [x.sites for x in sf.rotate(v, 1.0, plane=w).resolve(4).vectors] == [(POST[3],), (POST[3],)]


def test_another_width_is_refused():
    v, h = vector(4), state()
    text = (
        "The direction at resid_post[0] has width 4, but the hidden state there has width 5: this vector was made for "
        "another model or another site."
    )
    for op in (sf.add(v), sf.ablate(v), sf.project(v), sf.clamp(v, 1.0), sf.rotate(v, 1.0), sf.add(v, torch.ones(2))):
        refused(text, lambda op=op: op(h, sf.Info.of(h)), sf.ShapeError)


def test_what_is_not_a_finite_number_is_refused():
    finite = "must be finite in float32: pass numbers from -3.4e38 to 3.4e38."
    v = vector()
    for make, what in [
        (lambda a: sf.add(v, a), "alpha"),
        (lambda a: sf.clamp(v, a), "The value of clamp"),
        (lambda a: sf.clamp(v, min=a), "The min of clamp"),
        (lambda a: sf.clamp(v, max=a), "The max of clamp"),
        (lambda a: sf.rotate(v, a), "The angle of rotate"),
    ]:
        for bad in (float("nan"), float("inf"), 1e300, -(10**400), np.float32("inf")):
            refused(f"{what} is {bad}; it {finite}", partial(make, bad), sf.ShapeError)
        for bad in ("2", True, [1.0], np.ones(2)):
            text = f"{what} is a number, a 0-d tensor or a [batch] tensor, not {bad!r} of type {type(bad).__name__}."
            refused(text, partial(make, bad), sf.ShapeError)
        for bad in (torch.tensor(torch.nan), torch.tensor([1.0, -torch.inf]), torch.tensor(1e39, dtype=torch.float64)):
            text = f"{what} is {bad.tolist()}; every value {finite}"
            refused(text, partial(make, bad), sf.ShapeError)
        fix = "pass a 0-d tensor, or a [batch] tensor with one value for each row."
        refused(f"{what} is a tensor of shape [2, 1] and torch.float32; {fix}", partial(make, torch.ones(2, 1)))
        refused(f"{what} is a tensor of shape [] and torch.bool; {fix}", partial(make, torch.tensor(True)))


def test_what_is_no_vector_is_refused():
    fix = "make one with sf.SteeringVector({sf.resid_post[12]: tensor}) or load it with sf.load(path)."
    for make, name in [
        *[(sf.add, "add"), (sf.ablate, "ablate"), (sf.project, "project")],
        (lambda x: sf.clamp(x, 1.0), "clamp"),
        (lambda x: sf.rotate(x, 1.0), "rotate"),
        (lambda x: sf.rotate(vector(), 1.0, plane=x), "rotate(plane=)"),
    ]:
        refused(f"{name} takes a SteeringVector, not a Tensor; {fix}", lambda make=make: make(torch.ones(5)))


def test_clamp_refuses_bounds_that_contradict():
    v = vector()
    refused("clamp takes a value, or min and max, not both.", lambda: sf.clamp(v, 1.0, min=0.0))
    refused("clamp needs a value, a min or a max: write clamp(v, 0.0) or clamp(v, max=4.0).", lambda: sf.clamp(v))
    refused("clamp has min=2 above max=1.0; swap them.", lambda: sf.clamp(v, min=2, max=1.0))
    low = torch.tensor([0.0, 3.0])
    refused(f"clamp has min={low} above max=2.0; swap them.", lambda: sf.clamp(v, min=low, max=np.float32(2.0)))
    text = "clamp has 2 values of min and 3 of max; pass as many of each."
    refused(text, lambda: sf.clamp(v, min=low, max=torch.full((3,), 5.0)))


def test_a_plane_without_a_direction_there_is_refused():
    h, w = state(), sf.SteeringVector({1: torch.ones(5)})
    text = "rotate(v, angle, plane=w) acts at resid_post[0], but w has no direction there."
    refused(text, lambda: sf.rotate(vector(), 1.0, plane=w)(h, sf.Info.of(h)), sf.ShapeError)
