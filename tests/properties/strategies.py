"""Random hidden states, vectors, conditions, scopes and operators, and what it means to be close.

Numbers come from a seeded torch generator rather than from hypothesis, which shrinks the shapes, the
dtypes and the structure and leaves the numbers generic; zeros of both signs are planted in states.
"""

from typing import Any, NamedTuple

import hypothesis.strategies as st
import torch
from torch import Tensor

import steerfn as sf

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
SITES = (sf.resid_post[0], sf.resid_pre[3], sf.resid_mid[1], sf.attn_out[2], sf.mlp_out[0], sf.head_out[1, 2])

seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(DTYPES)
sites = st.sampled_from(SITES)
batches = st.integers(1, 3)
alphas = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 7.25, 1e-3, -100.0])
angles = st.sampled_from([0.0, 0.3, -0.7, 1.5, -2.0])


class State(NamedTuple):
    """A hidden state, where it was read, and the generator that made it."""

    hidden: Tensor
    info: sf.Info
    random: torch.Generator

    @property
    def width(self) -> int:
        return self.hidden.shape[-1]

    @property
    def site(self) -> sf.Site:
        return self.info.site


@st.composite
def states(draw: Any, dtypes: Any = dtypes, batch: Any = batches, zeros: bool = True) -> State:
    """`[1..3, 1..4, 1..17]` of any dtype and site, of several magnitudes, ragged prompts, zeros planted."""
    random = torch.Generator().manual_seed(draw(seeds))
    shape = (draw(batch), draw(st.integers(1, 4)), draw(st.integers(1, 17)))
    hidden = torch.randn(shape, generator=random, dtype=torch.float64) * draw(st.sampled_from([1.0, 1e-3, 100.0]))
    if zeros and draw(st.booleans()):
        kind = torch.randint(0, 5, shape, generator=random)
        hidden = torch.where(kind == 0, 0.0, torch.where(kind == 1, -0.0, hidden))
        if draw(st.booleans()):
            hidden[0, 0] = draw(st.sampled_from([0.0, -0.0]))
    hidden = hidden.to(draw(dtypes))
    length = torch.randint(1, shape[1] + 1, (shape[0],), generator=random)
    return State(hidden, sf.Info.of(hidden, draw(sites), prompt_length=length), random)


@st.composite
def directions(draw: Any, state: State, dtypes: Any = dtypes, zero: bool = False) -> sf.SteeringVector:
    """A vector with a direction at the state's site and perhaps others; generic, or exactly zero."""
    dtype, scale = draw(dtypes), draw(st.sampled_from([1.0, 0.01, 20.0]))
    more = [s for s in draw(st.lists(sites, max_size=2)) if s.kind == state.site.kind]
    return sf.SteeringVector(
        {
            s: (torch.zeros if zero else lambda w: scale * torch.randn(w, generator=state.random))(state.width).to(
                dtype
            )
            for s in dict.fromkeys([*more, state.site])
        }
    )


@st.composite
def conditions(draw: Any, state: State) -> sf.operators.Condition:
    """Any condition on the state at its own site."""
    v = draw(directions(state)).select(state.site)
    simple = [
        sf.cosine_above(v, draw(st.sampled_from([-0.2, 0.0, 0.3]))),
        sf.projection_above(v, draw(st.sampled_from([-1.0, 0.0, 0.5]))),
        sf.probe(v, draw(st.sampled_from([-1.0, 0.0, 0.5]))),
    ]
    first, second = draw(st.sampled_from(simple)), draw(st.sampled_from(simple))
    return draw(st.sampled_from([first, ~first, first | second, first & second]))


_plain_scopes = [
    *(sf.everywhere, sf.prompt, sf.generated, sf.last_prompt_token, sf.positions(0), sf.positions(-1, 2)),
    *(sf.positions(slice(1, None)), sf.positions(slice(None, -1, 2)), sf.positions(1000)),
]
scopes = st.recursive(
    st.sampled_from(_plain_scopes),
    lambda inner: (
        st.builds(lambda a: ~a, inner)
        | st.builds(lambda a, b: a | b, inner, inner)
        | st.builds(lambda a, b: a & b, inner, inner)
    ),
    max_leaves=3,
)


@st.composite
def primitives(draw: Any, state: State, zero: bool = False) -> sf.Operator:
    """One of the operators made of vectors alone, some of them with one number for each row."""
    v = draw(directions(state, zero=zero))
    alpha, angle = draw(alphas), draw(angles)
    spread = torch.linspace(0, 1, len(state.hidden))
    kind = draw(
        st.sampled_from(["add", "add_rows", "ablate", "project", "clamp", "bounds", "clamp_rows", "rotate", "plane"])
    )
    if kind == "plane":
        return sf.rotate(
            v, angle, plane=sf.SteeringVector({s: torch.randn(len(v[s]), generator=state.random) for s in v})
        )
    return {
        "add": lambda: sf.add(v, alpha),
        "add_rows": lambda: sf.add(v, alpha * spread),
        "ablate": lambda: sf.ablate(v),
        "project": lambda: sf.project(v),
        "clamp": lambda: sf.clamp(v, alpha),
        "bounds": lambda: sf.clamp(v, min=-1.0, max=abs(alpha)),
        "clamp_rows": lambda: sf.clamp(v, max=spread),
        "rotate": lambda: sf.rotate(v, angle),
    }[kind]()


@st.composite
def operators(draw: Any, state: State, zero: bool = False, depth: int = 2) -> sf.Operator:
    """Any operator for a state, nested to a depth; with `zero`, one made of zero directions only."""
    kinds = (
        ["primitive"]
        if depth == 0
        else ["primitive", "chain", "renorm", "when", "at", "scheduled", "function", "identity"]
    )
    kind = draw(st.sampled_from(kinds))
    if kind == "primitive":
        return draw(primitives(state, zero))
    if kind == "identity":
        return sf.identity
    inner = draw(operators(state, zero, depth - 1))
    return {
        "chain": lambda: sf.chain(inner, draw(operators(state, zero, depth - 1))),
        "renorm": lambda: sf.renorm(inner),
        "when": lambda: sf.when(draw(conditions(state)), inner),
        "at": lambda: sf.at(draw(scopes), inner),
        "scheduled": lambda: sf.scheduled(inner, draw(st.sampled_from([[0.0], [1.0], [1.0, 0.5, 0.0], [-2.0, 0.3]]))),
        "function": lambda: sf.scheduled(inner, lambda t: 0.5**t),
    }[kind]()


def bits(tensor: Tensor) -> Tensor:
    """The bit pattern of every entry: tells -0.0 from 0.0, and a NaN equals itself."""
    return tensor.contiguous().view(INTEGERS[tensor.dtype])


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality, dtype and shape included."""
    return a.dtype == b.dtype and a.shape == b.shape and bool((bits(a) == bits(b)).all())


def eps_of(*tensors: Any) -> float:
    """Rounding error of the least precise step: states in their dtype, directions in at least float32."""
    found = [torch.finfo(t.dtype).eps for t in tensors if isinstance(t, Tensor)]
    for vector in (t for t in tensors if isinstance(t, sf.SteeringVector)):
        found += [torch.finfo(torch.promote_types(d.dtype, torch.float32)).eps for d in vector.directions]
    return max(found)


def size(tensor: Tensor) -> float:
    """The largest norm of a token's state."""
    return float(tensor.double().norm(dim=-1).max())


def assert_close(a: Tensor, b: Tensor, scale: float, eps: float, factor: float = 16.0) -> None:
    """Entries differ by a few rounding errors of numbers as large as `scale`."""
    assert a.shape == b.shape
    error = float((a.double() - b.double()).abs().max())
    # Subnormal numbers of the coarser dtype have an absolute error instead.
    bound = factor * (eps * scale + 1e-7 * (eps > 1e-4 and scale < 1.0))
    assert error <= bound, f"differs by {error}, more than {bound}"
