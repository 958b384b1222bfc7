"""Forwards that act at a site: each calls the forward it stands for and applies what steers there.

They are instance `forward`s of substituted modules (`_substitute.py`). Where nothing steers the calling
thread they pass straight through.

Slices of a tensor over the ranks of a tensor-parallel model: put together on every rank, and cut again.

transformers' tensor parallelism gives each rank some heads of attention, so the input of the output projection is
this rank's slice. It is a plain tensor (transformers 5) or a `DTensor` (4.57). Both directions are differentiable.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steerfn.model import _frame, _stack
from steerfn.model._block_output import hidden_of, with_hidden
from steerfn.model._checkpoint import check_block, check_pass
from steerfn.model._entry import Host, entries_of
from steerfn.model._frame import Frame
from steerfn.model._generation import cache_in, cached_length, ids_in, padding_mask, tokens_in
from steerfn.model._packing import packing as packed_rows
from steerfn.model._pass_rows import PassRows
from steerfn.operators import shift
from steerfn.values import ModelError, Site


class Interposed:
    """Its method `forward` stands as an instance forward in place of a module's own.

    A bound method, because `torch.compile` guards those by their code and a callable object by its identity:
    opening another context then compiles nothing.

    Args:
        host: what all substituted modules of one model share.
        original: the module it stands for.
    """

    inner: Callable[..., Any]

    def __init__(self, host: Host, original: nn.Module) -> None:
        self.host, self.original = host, original
        self.parameters = _parameters(type(original))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, with what steers here applied."""
        raise TypeError(f"{type(self).__name__} acts at no site")

    def current(self) -> Frame | None:
        """The forward pass that steers here, or None."""
        if torch.compiler.is_compiling() or self.host.met is not None:
            return self.host.frame
        frame = _frame.frame.get()
        if frame is not None and frame.host is self.host:
            if frame.checkpoints is not None:
                check_block(frame)
            return frame
        entries = entries_of(self.host)  # a block called on its own, outside its model's forward
        check_pass(entries)
        return Frame.of(self.host, entries) if entries else None


@functools.cache
def _parameters(module: type[nn.Module]) -> tuple[str, ...]:
    """The names of what a class's forward takes, without `self`."""
    return tuple(inspect.signature(module.forward).parameters)[1:]


class Gate(Interposed):
    """The forward of a module above the blocks: opens the frame of one forward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        host = self.host
        if torch.compiler.is_compiling() or host.met is not None:
            if host.frame is not None:
                return self.inner(*args, **kwargs)
            host.frame = Frame(host, host.parts, **self._read_arguments(host.prompt, args, kwargs))
            try:
                return self.inner(*args, **kwargs)
            finally:
                host.frame = None
        under_way = _frame.frame.get()
        if under_way is not None and under_way.host is host:
            return self.inner(*args, **kwargs)
        entries = entries_of(host)
        check_pass(entries)
        if not entries:
            return self.inner(*args, **kwargs)
        prompt = _frame.generation.get()
        prompt = prompt if prompt is not None and prompt.host is host else None
        unnoted = _stack.generating() if prompt is None and entries[0].placed is not None else None
        opened = Frame.of(host, entries, unnoted=(unnoted, self.original), **self._read_arguments(prompt, args, kwargs))
        token = _frame.frame.set(opened)
        host.frame = opened
        try:
            out = self.inner(*args, **kwargs)
            opened.complete(out)
            return out
        finally:
            host.frame = None
            _frame.frame.reset(token)
            opened.close()

    def _read_arguments(self, prompt: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The facts about its tokens in a forward pass's arguments; `prompt` is the running `generate`, or None."""
        if not torch.compiler.is_compiling() and (packing := packed_rows.get()) is not None:
            return {"packing": packing}
        arguments = dict(zip(self.parameters, args, strict=False))
        arguments.update(kwargs)
        mask, past, fed = padding_mask(arguments.get("attention_mask")), cached_length(arguments), tokens_in(arguments)
        seq = 1 if fed is None else fed.shape[1]
        if prompt is not None and not torch.compiler.is_compiling():
            prompt = prompt.sequence_of(arguments, past, mask)
        rows = PassRows(ids_in(arguments), cache_in(arguments), past, prompt)
        if prompt is not None:
            past = prompt.advance(arguments, past, seq)
        elif past is None:  # a recurrent state: the mask knows how many tokens came before
            past = 0 if mask is None else max(mask.shape[1] - seq, 0)
        return {"mask": mask, "past": past, "prompt": prompt, "rows": rows}


class BlockForward(Interposed):
    """The forward of a decoder block: `resid_pre` on its input, `resid_post` on its output."""

    def __init__(self, host: Host, original: nn.Module, layer: int) -> None:
        super().__init__(host, original)
        self.pre, self.post = Site("resid_pre", layer), Site("resid_post", layer)
        self.pre_name, self.post_name = str(self.pre), str(self.post)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        current = self.current()
        if current is None:
            return self.inner(*args, **kwargs)
        if torch.compiler.is_compiling() or self.host.met is not None or _frame.frame.get() is current:
            return self._within(current, args, kwargs)
        token = _frame.frame.set(current)  # a block called on its own: what is inside it shares its frame
        try:
            return self._within(current, args, kwargs)
        finally:
            _frame.frame.reset(token)
            current.close()

    def _within(self, current: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block's forward in a frame."""
        if args:
            hidden = current.apply(self.pre_name, self.pre, args[0])
            args = (hidden, *args[1:])
        else:
            name = "hidden_states" if "hidden_states" in kwargs else self.parameters[0]
            hidden = current.apply(self.pre_name, self.pre, kwargs[name])
            kwargs = {**kwargs, name: hidden}
        current.block_input = hidden
        if current.trunk is None:
            out = self.inner(*args, **kwargs)
        else:
            out = current.trunk(self.post.block, hidden, lambda: self.inner(*args, **kwargs))
        if not current.touches(self.post_name):
            return out
        return with_hidden(out, current.apply(self.post_name, self.post, hidden_of(out)))


class AddendForward(Interposed):
    """The forward of the module whose output a block adds to its stream: `attn_out` or `mlp_out`.

    `attn_out` also carries `resid_mid`: the stream there is the block's input plus what is added, so a
    change of the stream is made as a change of the addend.
    """

    def __init__(self, host: Host, original: nn.Module, site: Site, scale: float) -> None:
        super().__init__(host, original)
        self.site, self.scale, self.name = site, scale, str(site)
        self.mid = Site("resid_mid", site.layer) if site.kind == "attn_out" else None
        self.mid_name = str(self.mid)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        current = self.current()
        if current is None or not (
            current.touches(self.name) or (self.mid is not None and current.touches(self.mid_name))
        ):
            return out
        value, before = hidden_of(out), current.block_input
        added = self._steer_addend(current, self.name, self.site, _by_row(value, before), None)
        if self.mid is not None and before is not None and current.touches(self.mid_name):
            added = self._steer_addend(current, self.mid_name, self.mid, added, before)
        return with_hidden(out, added if added.ndim == value.ndim else added.reshape(value.shape))

    def _steer_addend(self, current: Frame, name: str, site: Site, added: Tensor, before: Tensor | None) -> Tensor:
        """The addend after the operators at a site; `before` is what it is added to, for `resid_mid`."""
        if before is None and self.scale == 1:
            return current.apply(name, site, added)
        state = added if self.scale == 1 else added * self.scale
        state = state if before is None else before + state
        out = current.apply(name, site, state)
        return added if out is state else shift(added, (out - state) / self.scale)


class HeadsForward(Interposed):
    """The forward of an attention output projection: `head_out[layer, head]` on slices of its input."""

    def __init__(self, host: Host, original: nn.Module, layer: int, heads: int, d_head: int) -> None:
        super().__init__(host, original)
        self.sites = tuple(Site("head_out", layer, head) for head in range(heads))
        self.names = tuple(map(str, self.sites))
        self.d_head, self.mesh = d_head, mesh_of(original)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        current = self.current()
        if current is None or not any(current.touches(name) for name in self.names):
            return self.inner(*args, **kwargs)
        given = all_heads(args[0], len(self.sites) * self.d_head, self.mesh)
        parts = _by_row(given, current.block_input).unflatten(-1, (len(self.sites), self.d_head)).unbind(-2)
        steered = [current.apply(n, s, part) for n, s, part in zip(self.names, self.sites, parts, strict=True)]
        joined = torch.stack(steered, -2).flatten(-2).reshape(given.shape)
        return self.inner(own_heads(joined, args[0], self.mesh), *args[1:], **kwargs)


def _by_row(value: Tensor, before: Tensor | None) -> Tensor:
    """A `[tokens, width]` value, as some modules give, in the rows of the block's input; any other as it is."""
    return value if value.ndim != 2 or before is None else value.reshape(*before.shape[:-1], value.shape[-1])


class TokenwiseForward(Interposed):
    """The forward of a module that takes every token alone, run on the tokens that matter; the others come out 0.

    In the last block of a pass that only reads, nothing but the tokens that are read matters after attention.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        current = self.current()
        if current is None or current.matter is None or len(args) != 1 or kwargs:
            return self.inner(*args, **kwargs)
        flat = args[0].reshape(-1, args[0].shape[-1])
        matter = current.matter.to(flat.device)
        out = self.inner(flat[matter].unsqueeze(0))
        if not isinstance(out, Tensor):
            return self.inner(*args)
        whole = out.new_zeros(flat.shape[0], out.shape[-1]).index_copy_(0, matter, out[0])
        return whole.reshape(*args[0].shape[:-1], out.shape[-1])


def mesh_of(module: nn.Module) -> Any:
    """The mesh of ranks over which a module's weight is cut; None where it is whole."""
    return getattr(getattr(module, "weight", None), "device_mesh", None)


def all_heads(given: Tensor, width: int, mesh: Any) -> Tensor:
    """All `width` features on every rank; the same tensor where they are there already.

    Raises:
        ModelError: a slice, of which it is not known how it was cut.
    """
    if mesh is not None:
        from torch.distributed.tensor import DTensor, Shard

        if isinstance(given, DTensor):
            return given.full_tensor()
        if mesh.ndim == 1 and given.shape[-1] * mesh.size() == width:
            return DTensor.from_local(given, mesh, [Shard(-1)], run_check=False).full_tensor()
    if given.shape[-1] != width:
        raise ModelError(
            f"The attention heads here are {given.shape[-1]} wide together where {width} was expected: they are split "
            f"over devices in a way that is not known (mesh: {mesh}), so head_out cannot be steered or read; use "
            "attn_out, or load the model without splitting attention."
        )
    return given


def own_heads(changed: Tensor, given: Tensor, mesh: Any) -> Tensor:
    """The tensor that `whole` put together, cut into shards again as `given` was."""
    if mesh is None or (type(given) is Tensor and changed.shape == given.shape):
        return changed
    from torch.distributed.tensor import DTensor, Replicate, Shard

    everywhere = DTensor.from_local(changed, mesh, [Replicate()] * mesh.ndim, run_check=False)
    if isinstance(given, DTensor):
        return everywhere.redistribute(placements=given.placements)
    return everywhere.redistribute(placements=[Shard(-1)]).to_local()
