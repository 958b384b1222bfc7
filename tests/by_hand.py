"""Steering by hand: plain torch hooks on modules named by hand, with arithmetic and positions of their own.

The oracle of `properties/test_matrix.py`. Nothing of the library is in it: where a family keeps its sites was read in
transformers' source, what an operator does is written out from its formula, and a token's place in its row is counted
in plain Python. Only the directions are shared.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEAD_WIDTH, LAYERS = 32, 8, 3


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Where a family's blocks keep what sites stand for; paths from the model, and from the block.

    Attributes:
        blocks: the list of blocks.
        attn: the module whose output is what attention (or another mixer) adds, by layer.
        mlp: the same for the MLP, or None.
        mid: the module that reads the stream between the two, or None where they run in parallel.
        projection: attention's output projection, by layer, None where the mixer is none.
        scale: what an addend is multiplied with before it is added.
    """

    blocks: str
    attn: tuple[str, str, str]
    mlp: str | None
    mid: str | None
    projection: tuple[str | None, str | None, str | None]
    scale: float = 1.0

    def kinds(self, layer: int) -> list[str]:
        """The kinds of site that a block has."""
        has = {"attn_out": True, "mlp_out": self.mlp, "resid_mid": self.mid, "head_out": self.projection[layer]}
        return ["resid_pre", "resid_post", *(kind for kind, where in has.items() if where)]


def _alike(blocks: str, attn: str, mlp: str | None, mid: str | None, projection: str | None, **more: Any) -> Anatomy:
    return Anatomy(blocks, (attn,) * 3, mlp, mid, (projection,) * 3, **more)


ANATOMY = {
    "llama": _alike("model.layers", "self_attn", "mlp", "post_attention_layernorm", "self_attn.o_proj"),
    # learned positions
    "gpt2": _alike("transformer.h", "attn", "mlp", "ln_2", "attn.c_proj"),
    # norms after the sublayers, and attention that slides in some blocks
    "gemma2": _alike(
        "model.layers",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "pre_feedforward_layernorm",
        "self_attn.o_proj",
    ),
    # attention that slides in all of them
    "mistral_sliding": _alike("model.layers", "self_attn", "mlp", "post_attention_layernorm", "self_attn.o_proj"),
    # attention and MLP in parallel
    "gpt_neox": _alike("gpt_neox.layers", "attention", "mlp", None, "attention.dense"),
    # the same, and blocks that return a tuple
    "gptj": _alike("transformer.h", "attn", "mlp", None, "attn.out_proj"),
    # the residual is added inside the sublayers; positions from the mask alone
    "bloom": _alike(
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "post_attention_layernorm",
        "self_attention.dense",
    ),
    # the MLP sees [tokens, width]
    "opt": _alike("model.decoder.layers", "self_attn", "fc2", "final_layer_norm", "self_attn.out_proj"),
    # addends are scaled
    "granite": _alike("model.layers", "self_attn", "mlp", "post_attention_layernorm", "self_attn.o_proj", scale=0.3),
    # convolutions and attention by turns
    "lfm2": Anatomy(
        "model.layers",
        ("conv", "self_attn", "conv"),
        "feed_forward",
        "ffn_norm",
        (None, "self_attn.out_proj", None),
    ),
    # a state space in place of attention, and no MLP
    "mamba": _alike("backbone.layers", "mixer", None, None, None),
}

Strength = Callable[[int, int], float]

FADING = (1.0, 0.5, 0.0, 2.0)

# How strongly each scope acts on the real token `i` of a row whose prompt has `p` tokens.
SCOPES: dict[str, Strength] = {
    "everywhere": lambda i, p: 1,
    "prompt": lambda i, p: i < p,
    "generated": lambda i, p: i >= p - 1,
    "last_prompt_token": lambda i, p: i == p - 1,
    "positions(0)": lambda i, p: i == 0,
    "positions(1, -1)": lambda i, p: i in (1, p - 1),
    "positions(slice(-2, None))": lambda i, p: i >= max(p - 2, 0),
    "~prompt": lambda i, p: i >= p,
    "prompt & ~last_prompt_token": lambda i, p: i < p - 1,
    "positions(0) | generated": lambda i, p: i == 0 or i >= p - 1,
    "scheduled": lambda i, p: FADING[min(i - p + 1, 3)] if i >= p - 1 else 0,
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One operator at one site under one scope, as data. Negative layers count from the end, as in the library."""

    act: str
    kind: str
    layer: int
    scope: str = "everywhere"
    number: float = 1.0
    head: int | None = None
    seed: int = 0

    def __repr__(self) -> str:
        head = "" if self.head is None else f", {self.head}"
        return f"{self.act}({self.number:g}) #{self.seed} at {self.kind}[{self.layer}{head}] on {self.scope}"

    @property
    def block(self) -> int:
        return self.layer % LAYERS

    def direction(self, dtype: torch.dtype, second: bool = False) -> Tensor:
        """What it steers along, `[width]`; `second` is the other axis of a plane."""
        random = torch.Generator().manual_seed(2 * self.seed + second)
        width, size = (WIDTH, 1.0) if self.head is None else (HEAD_WIDTH, 3.0)
        return (size * torch.randn(width, generator=random, dtype=torch.float64)).to(dtype)

    def on(self, h: Tensor, direction: Tensor | None = None) -> Tensor:
        """Its formula, in at least float32, along its own direction or one that is being trained."""
        wide = h.dtype if h.dtype == torch.float64 else torch.float32
        v, w = self.direction(wide) if direction is None else direction, self.direction(wide, second=True)
        if self.act == "add":
            return h + (self.number * v).to(h.dtype)
        return self._formula(h.to(wide), v, w).to(h.dtype)

    def _formula(self, h: Tensor, v: Tensor, w: Tensor) -> Tensor:
        u, c = v / v.norm(), self.number
        along = (h * u).sum(-1, keepdim=True)
        if self.act == "ablate":
            return h - along * u
        if self.act == "project":
            return along * u
        if self.act == "clamp":
            return h + (c - along) * u
        if self.act == "bound":
            return h + (along.clamp(-abs(c), abs(c)) - along) * u
        if self.act == "renormed add":
            out = h + c * v
            return out * h.norm(dim=-1, keepdim=True) / out.norm(dim=-1, keepdim=True)
        if self.act == "add if aligned":
            return torch.where((h * w).sum(-1, keepdim=True) / w.norm() > 0.1, h + c * v, h)
        if self.act == "rotate":  # the half angle to the direction shrinks by exp(-c)
            norm = h.norm(dim=-1, keepdim=True)
            across = h - along * u
            turned = 2 * torch.atan(torch.exp(torch.tensor(-c)) * torch.tan(torch.acos(along / norm) / 2))
            return norm * (turned.cos() * u + turned.sin() * across / across.norm(dim=-1, keepdim=True))
        if self.act == "rotate in a plane":
            second = w - (w @ u) * u
            second = second / second.norm()
            other = (h * second).sum(-1, keepdim=True)
            cos, sin = torch.cos(torch.tensor(c)), torch.sin(torch.tensor(c))
            rest = h - along * u - other * second
            return rest + (along * cos + other * sin) * u + (other * cos - along * sin) * second
        raise ValueError(self.act)


ACTS = (
    "add",
    "ablate",
    "project",
    "clamp",
    "bound",
    "renormed add",
    "rotate",
    "rotate in a plane",
    "add if aligned",
)

Program = tuple[Step, ...]
"""What steers one row: steps in order; those at other sites do not mind each other."""

Places = Callable[[int, int], Sequence[Sequence[tuple[int, int] | None]]]
"""For a pass of `[batch, seq]`: each position's token and its row's prompt length, None at padding."""


def a_row(*parts: tuple[int | None, int]) -> Places:
    """The places of one row without padding and without a cache: up to token `end` the prompt has `length` tokens."""

    def places(batch: int, seq: int) -> Sequence[Sequence[tuple[int, int]]]:
        row = [(i, next(p for end, p in parts if end is None or i < end)) for i in range(seq)]
        return [row] * batch

    return places


def padded(lengths: Sequence[int], side: str) -> Places:
    """The places of one pass over padded rows: everything passed is prompt."""

    def places(batch: int, seq: int) -> Sequence[Sequence[tuple[int, int] | None]]:
        rows = []
        for n in lengths:
            real: list[tuple[int, int] | None] = [(i, n) for i in range(n)]
            pads: list[tuple[int, int] | None] = [None] * (seq - n)
            rows.append(pads + real if side == "left" else real + pads)
        return rows

    return places


def _act(
    h: Tensor,
    programs: Sequence[Program],
    kind: str,
    layer: int,
    head: int | None,
    places: Places,
    trained: Mapping[Step, Tensor],
) -> Tensor:
    """A site's state `[batch, seq, width]` after the steps of every row there."""
    batch, seq = h.shape[:2]
    rows = []
    for b, row in enumerate(places(batch, seq)):
        state = h[b]
        for step in programs[b % len(programs)]:
            if (step.kind, step.block, step.head) != (kind, layer, head):
                continue
            strengths = [0.0 if place is None else float(SCOPES[step.scope](*place)) for place in row]
            s = torch.tensor(strengths, dtype=h.dtype)
            chosen = s.nonzero().flatten()  # a formula is no formula on what is no token
            if not len(chosen):
                continue
            before, s = state[chosen], s[chosen].unsqueeze(-1)
            after = step.on(before, trained.get(step))
            after = torch.where(s == 1, after, before + s * (after - before))
            state = state.index_copy(0, chosen, after)
        rows.append(state)
    return torch.stack(rows)


@contextlib.contextmanager
def steering(
    core: nn.Module,
    family: str,
    programs: Sequence[Program],
    places: Places,
    trained: Mapping[Step, Tensor] = MappingProxyType({}),
) -> Iterator[None]:
    """A model under hooks: one program for all rows of a pass, or one for each.

    Args:
        core: the transformers model, or its backbone.
        family: its name in `ANATOMY`.
        programs: one, or one for each row.
        places: which token each position holds.
        trained: directions in place of a step's own.
    """
    anatomy, handles = ANATOMY[family], []
    blocks = anatomy.blocks if hasattr(core, anatomy.blocks.split(".")[0]) else anatomy.blocks.split(".", 1)[1]

    def act(h: Any, kind: str, layer: int, head: int | None = None) -> Any:
        return _act(h, programs, kind, layer, head, places, trained)

    for layer in range(LAYERS):
        block = core.get_submodule(f"{blocks}.{layer}")
        wanted = {step.kind for program in programs for step in program if step.block == layer}
        if wanted:
            handles += _hooks(block, anatomy, layer, wanted, act)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(block: nn.Module, anatomy: Anatomy, layer: int, wanted: set[str], act: Any) -> list[Any]:
    """Hooks at the sites of one block."""
    shape: list[int] = []
    moved: list[Tensor] = []
    handles = []

    def shaped(value: Tensor) -> Tensor:
        return value.reshape(*shape[:2], value.shape[-1])

    def block_before(module: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = list(args), dict(kwargs)
        h = args[0] if args else kwargs["hidden_states"]
        shape[:], moved[:] = h.shape, []
        h = act(h, "resid_pre", layer)
        if args:
            args[0] = h
        else:
            kwargs["hidden_states"] = h
        return tuple(args), kwargs

    def block_after(module: Any, args: Any, out: Any) -> Any:
        h = out[0] if isinstance(out, tuple) else out
        for change in moved:
            h = h + change
        h = act(h, "resid_post", layer)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    def mid_before(module: Any, args: Any) -> Any:
        # What follows reads the changed stream here; the block adds to the unchanged one, so its output moves too.
        stream = shaped(args[0])
        changed = act(stream, "resid_mid", layer)
        moved.append(changed - stream)
        return changed.reshape(args[0].shape)

    def addend_after(kind: str) -> Any:
        def after(module: Any, args: Any, out: Any) -> Any:
            first = out[0] if isinstance(out, tuple) else out
            added = act(shaped(first) * anatomy.scale, kind, layer).reshape(first.shape) / anatomy.scale
            return (added, *out[1:]) if isinstance(out, tuple) else added

        return after

    def projection_before(module: Any, args: Any) -> Any:
        heads = shaped(args[0]).split(HEAD_WIDTH, -1)
        return torch.cat([act(h, "head_out", layer, i) for i, h in enumerate(heads)], -1).reshape(args[0].shape)

    handles.append(block.register_forward_pre_hook(block_before, with_kwargs=True))
    handles.append(block.register_forward_hook(block_after))
    if "resid_mid" in wanted:
        handles.append(block.get_submodule(anatomy.mid or "").register_forward_pre_hook(mid_before))
    if "attn_out" in wanted:
        handles.append(block.get_submodule(anatomy.attn[layer]).register_forward_hook(addend_after("attn_out")))
    if "mlp_out" in wanted:
        handles.append(block.get_submodule(anatomy.mlp or "").register_forward_hook(addend_after("mlp_out")))
    if "head_out" in wanted:
        projection = block.get_submodule(anatomy.projection[layer] or "")
        handles.append(projection.register_forward_pre_hook(projection_before))
    return handles
