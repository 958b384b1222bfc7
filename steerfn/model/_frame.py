"""One forward pass as the steered blocks see it: which operators act, and which token sits where.

Nothing here touches a module. What steers the calling thread or task lives in context variables:
`active` holds the open steerings (`_entry.py`), `generation` the prompt of a running `generate`, `frame`
the forward pass that is under way. Inside a graph that `torch.compile` traces, where context variables cannot be
read, a plain slot on the `Host` takes their place.
"""

import contextvars
import logging
from typing import Any

import torch
from torch import Tensor

from steerfn.model._backward import checkpoints
from steerfn.model._entry import Bounds, Entry, Host, Observation
from steerfn.model._generation import Generation, Sequence
from steerfn.model._packing import Packing
from steerfn.model._padding import unless_all
from steerfn.model._pass_rows import PassRows
from steerfn.operators import (
    Asking,
    Info,
    Tokens,
    apply_step,
)
from steerfn.values import ModelError, ShapeError, Site, SteerError, new, replace

log = logging.getLogger("steerfn")

generation: contextvars.ContextVar[Generation | None] = contextvars.ContextVar("steerfn_generation", default=None)
frame: contextvars.ContextVar["Frame | None"] = contextvars.ContextVar("steerfn_frame", default=None)


class Frame:
    """One forward pass of one model under some steerings.

    Args:
        host: the model's host.
        parts: the bound operators of each steering, in opening order.
        entries: the steerings they come from (none in compiled regions).
        mask: the 2-D attention mask, if there is one: of the cached tokens and the new ones, as long as a static
            cache, or of the last ones alone.
        past: tokens in the cache, an int or a 0-d tensor; None where it does not say.
        prompt: what the pass goes on inside a running `generate`, if it runs inside one.
        rows: the token ids of the pass, and of what comes before it in its rows.
        unnoted: where a `generate` runs that did not come by a context: its model, and the module that the pass is of.
        packing: where the tokens stand in a pass whose rows are laid end to end; None in any other.
    """

    def __init__(
        self,
        host: Host,
        parts: tuple[Bounds, ...],
        entries: tuple[Entry, ...] = (),
        mask: Tensor | None = None,
        past: Any = 0,
        prompt: Sequence | None = None,
        rows: PassRows | None = None,
        unnoted: tuple[Any, Any] = (None, None),
        packing: Packing | None = None,
    ) -> None:
        self.host, self.parts, self.entries, self.packing = host, parts, entries, packing
        self.mask, self.past, self.prompt, self.unnoted = mask, past, prompt, unnoted
        self.rows = PassRows() if rows is None else rows
        if any(entry.token_scopes for entry in entries):
            self.rows.look_back()
        reads = [e.reads for e in entries] if entries else host.reads
        self.lengths = [e.prompt_length for e in entries] if entries else host.lengths
        self.wanted = tuple(name for names in reads for name in names)
        only = entries[0] if len(entries) == 1 else None
        self.matter, self.trunk = (only.matter, only.trunk) if isinstance(only, Observation) else (None, None)
        self.reads: dict[Site, Tensor] = {}
        self.block_input: Tensor | None = None
        self.compiled = False
        self.checkpoints: int | None = None  # how many it may be inside of; None: no gradient is asked for
        self._tokens: Any = None
        self._tokens_for: Any = None

    @classmethod
    def of(cls, host: Host, entries: tuple[Entry, ...], **known: Any) -> "Frame":
        """A frame in which all `entries` act, one after the other at each site."""
        for entry in entries:
            entry.used = True
        frame = cls(host, tuple(e.bounds() for e in entries), entries, **known)
        frame.checkpoints = checkpoints() if torch.is_grad_enabled() else None
        return frame

    def again(self, reads: dict[Site, Tensor], block_input: Tensor | None) -> "Frame":
        """The same pass once more, for a block that is checkpointed; `reads` were met at earlier sites."""
        frame = Frame(self.host, self.parts, self.entries, self.mask, self.past, self.prompt, self.rows)
        frame.reads, frame.block_input = dict(reads), block_input
        return frame

    def tokens(self, hidden: Tensor) -> Tokens:
        """Which token each position of `hidden` holds; computed once for each device."""
        if self.packing is not None:
            return self.packing.tokens
        if torch.compiler.is_compiling():
            return self.locate(hidden.shape[0], hidden.shape[1], hidden.device)
        key = (hidden.shape[0], hidden.shape[1], hidden.device)
        if self._tokens_for != key:
            self._tokens, self._tokens_for = _Deferred(self, key), key
        return self._tokens

    def without_padding(self) -> bool:
        """Whether no position can be padding, as far as that is known without looking at a tensor."""
        if self.prompt is None:
            return self.mask is None
        return isinstance(self.past, int) and self.past >= self.prompt.length

    def locate(self, batch: int, seq: int, device: torch.device) -> Tokens:
        """Which token each position of a `[batch, seq, width]` state on a device holds."""
        where, rows = self._locate(batch, seq, device), self.rows
        return replace(where, ids=rows.ids_of(batch, seq), row=rows.row_ids(seq, device, lambda: where.real))

    def _locate(self, batch: int, seq: int, device: torch.device) -> Tokens:
        mask = None if self.mask is None else self.mask.to(device=device, dtype=torch.long)
        where = torch.arange(seq, device=device) + self.past
        if self.prompt is None:
            return self._in_plain_forward(mask, where, batch, seq)
        prompt, copies = self.prompt, self.copies(batch)
        if prompt.mask is None and mask is not None and mask.shape[-1] >= prompt.length:
            prompt.mask = mask[:, : prompt.length]
        if prompt.mask is None:
            index = where.expand(batch, seq)
            return Tokens(index, torch.full((batch, 1), prompt.length, device=device), None, copies)
        prompt_mask = prompt.mask.to(device=device, dtype=torch.long)
        if prompt_mask.shape[0] != batch and batch % prompt_mask.shape[0] == 0:
            prompt_mask = prompt_mask.repeat_interleave(batch // prompt_mask.shape[0], 0)
        if prompt_mask.shape[0] != batch:
            prompt_mask = torch.ones(batch, prompt.length, dtype=torch.long, device=device)
        counted = prompt_mask.cumsum(-1)
        inside = where.clamp_max(prompt.length - 1).expand(batch, seq)
        index = counted.gather(1, inside) + (where - (prompt.length - 1)).clamp_min(0) - 1
        real = prompt_mask.gather(1, inside).bool() | (where >= prompt.length)
        return Tokens(index, counted[:, -1:], unless_all(real), copies)

    def copies(self, batch: int) -> int:
        """Consecutive rows that hold one prompt: beams, `num_return_sequences`."""
        rows = batch if self.prompt is None else self.prompt.rows
        return batch // rows if batch % rows == 0 else 1

    def _in_plain_forward(self, mask: Tensor | None, where: Tensor, batch: int, seq: int) -> Tokens:
        if mask is not None and mask.shape[0] == batch and mask.shape[-1] >= seq:
            # A mask may end with the tokens of this pass, the cached ones that it does not cover being real, or go
            # on to the end of a static cache.
            before = self.past + seq - mask.shape[-1]
            before = before.clamp_min(0) if isinstance(before, Tensor) else max(before, 0)
            columns = (where - before).expand(batch, seq)
            index = mask.cumsum(-1).gather(1, columns) + before - 1
            length = index[:, -1:] + 1
            real = unless_all(mask.gather(1, columns).bool())
        else:
            index, real = where.expand(batch, seq), None
            length = index[:, -1:] + 1
        prompt_length = next((length for length in reversed(self.lengths) if length is not None), None)
        if prompt_length is not None:
            # In a compiled view it is an int.
            prompt_length = torch.as_tensor(prompt_length, device=index.device).reshape(-1, 1)
            if prompt_length.shape[0] not in (1, batch):
                raise ShapeError(
                    f"prompt_length has {prompt_length.shape[0]} values, but the batch has {batch} rows; "
                    "pass one int, or one for each row."
                )
            length = prompt_length.expand(batch, 1)
        return Tokens(index, length, real)

    def check_prompt(self) -> None:
        """Refuse to say where the prompt ends inside a `generate` that did not come by the context.

        Raises:
            SteerError: it is the `generate` of a model around the steered one, or was called on the class.
        """
        generating, within = self.unnoted
        if generating is None or any(length is not None for length in self.lengths):
            return
        if any(module is within for module in generating.modules()):
            name = type(generating).__name__
            raise SteerError(
                f"An operator asks where the prompt ends, but {name}.generate was not called on a model that the "
                f"context knows: it was called past the context, as type(model).generate(model), or the context was "
                f"opened on a part of {name}. Open the context on the model that generates, with sf.steer(model, ...), "
                "and call model.generate(...)."
            )

    def complete(self, out: Any) -> None:
        """The pass has come to its end: what was not met until now is missed, and its tokens are in the cache."""
        self.rows.remember(out)
        if self.compiled:
            return  # compiled code does not say what it meets
        for entry in self.entries:
            for name in entry.part:
                entry.selections.sites.setdefault(name, False)

    def close(self) -> None:
        """Let go of the hidden states: tokens and their frame refer to each other, and such a cycle stays a while."""
        self.block_input, self.reads = None, {}
        self._tokens = self._tokens_for = None
        self.rows.close()

    def touches(self, name: str) -> bool:
        """Whether anything acts on or reads a site."""
        return name in self.wanted or any(name in part for part in self.parts)

    def apply(self, name: str, site: Site, hidden: Tensor) -> Tensor:
        """The hidden state after every operator at a site; the same tensor where none changes it."""
        if self.packing is None or hidden.ndim != 3 or not self.touches(name):
            return self._apply(name, site, hidden)
        rows = self.packing.unpack(hidden)
        out = self._apply(name, site, rows)
        return hidden if out is rows else self.packing.pack(out)

    def _apply(self, name: str, site: Site, hidden: Tensor) -> Tensor:
        for i, part in enumerate(self.parts):
            step = part.get(name)
            if step is not None:
                if hidden.ndim != 3:
                    raise ModelError(
                        f"The hidden state at {name} has shape {list(hidden.shape)}, not [batch, seq, d_model]: this "
                        "architecture keeps several residual streams, which cannot be steered at this site."
                    )
                tokens = self.tokens(hidden)
                if self.entries and not torch.compiler.is_compiling():
                    hidden = self._step(self.entries[i], step, name, site, hidden, tokens)
                else:
                    self.compiled = True
                    if self.host.met is not None:
                        self.host.met.append(name)
                    info = _info(site, tokens, self.reads, None, self._asking(i))
                    hidden = _keep_padding(apply_step(step, hidden, info), hidden, tokens)
        if name in self.wanted:
            self.reads[site] = hidden
        return hidden

    def _asking(self, steering: Entry | int) -> Asking:
        """The evidence about prompts for the conditions of a steering; compiled code knows a steering by its place."""
        if self.packing is not None:
            raise SteerError(
                "A condition on the prompt decides for whole prompts, which continuous batching runs in parts; steer "
                "without it, or run batches."
            )
        if self.prompt is None:
            self.check_prompt()
            return Asking(self.past, any(length is not None for length in self.lengths))
        if isinstance(steering, Entry):
            memory = self.prompt.memory(steering)
        else:  # contexts of other threads steer compiled code too, and have decided nothing here
            alone = len(self.parts) == len(self.prompt.memories)
            memory = self.prompt.memories[steering] if alone else None
        return Asking(self.past, True, self.prompt.length, memory)

    def _step(self, entry: Entry, step: Any, name: str, site: Site, hidden: Tensor, tokens: Tokens) -> Tensor:
        """The operator of one steering at one site, checked."""
        entry.selections.sites[name] = True
        try:
            if hidden.device != entry.devices[name]:
                step = entry.bind_on(site, hidden.device)
            asking = self._asking(entry) if entry.asks_prompts else None
            out = apply_step(step, hidden, _info(site, tokens, self.reads, entry.selections, asking))
            if out is hidden:
                return hidden
            _check_result(out, hidden, name)
            if asking is not None and asking.doubted:
                asking.check(out, hidden, tokens, name)
            out = _keep_padding(out, hidden, tokens)
            entry.overflow.note(name, hidden, out)
            return out
        except Exception as error:
            if entry.on_error != "baseline" or type(error).__module__ == "torch.utils.checkpoint":
                raise  # by an error of its own a checkpoint stops a block that has run far enough for backward
            entry.fallbacks += 1
            log.error("steering failed at %s and was left out there (fallback %d): %s", name, entry.fallbacks, error)
            return hidden


class _Deferred(Tokens):
    """The tokens of a frame, located when something asks: a plain addition to a decoded token never does."""

    def __init__(self, frame: Frame, key: tuple[int, int, torch.device]) -> None:
        fields = {"_frame": frame, "_key": key, "copies": frame.copies(key[0]), "ids": frame.rows.ids_of(*key[:2])}
        fields["row"] = frame.rows.row_ids(*key[1:], lambda: frame.locate(*key).real)
        if frame.without_padding():
            fields["real"] = None
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in ("index", "prompt_length", "real"):
            raise AttributeError(name)
        if name == "prompt_length":
            self._frame.check_prompt()
        located = self._frame.locate(*self._key)
        for each in ("index", "real") if name != "prompt_length" else ("index", "prompt_length", "real"):
            object.__setattr__(self, each, getattr(located, each))
        return getattr(located, name)


def _info(site: Site, tokens: Tokens, reads: Any, selections: Any, decisions: Any) -> Info:
    return new(Info, site=site, tokens=tokens, reads=reads, selections=selections, decisions=decisions)


def _keep_padding(out: Tensor, hidden: Tensor, tokens: Tokens) -> Tensor:
    """Whatever an operator did, padding keeps its state."""
    return out if tokens.real is None else torch.where(tokens.real.unsqueeze(-1), out, hidden)


def _check_result(out: Any, hidden: Tensor, name: str) -> None:
    if not isinstance(out, Tensor) or out.shape != hidden.shape or out.dtype != hidden.dtype:
        got = f"{list(out.shape)} and {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError(
            f"An operator at {name} returned {got}; given a hidden state of {list(hidden.shape)} and {hidden.dtype} "
            "it must return one of the same shape and dtype."
        )
