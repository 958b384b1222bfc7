"""One open steering: an operator, bound at its sites, on the modules of one model.

Nothing here touches a module. What steers the calling thread or task is in the context variable `active`.
"""

import contextlib
import contextvars
import itertools
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn.model import _stack
from steerfn.model._backward import backward_task, checkpoints
from steerfn.model._selections import Selections
from steerfn.operators import Operator, Overflow, as_prompt_length, asks_prompts, row_count, token_scopes
from steerfn.values import Site

Bounds = dict[str, Any]
"""The bound operators of one steering, by site name."""


class Host:
    """The object that the substituted modules of one model share: its identity, and slots for compiled regions.

    Attributes:
        parts: the bound operators of every open steering of every thread, in opening order; compiled
            regions are steered by all of them, since they cannot tell threads apart.
        reads: the names of the sites that each of them reads besides.
        lengths: the prompt lengths that each of them was given, or None.
        met: in a compiled pure view the names of the sites met so far, else None. Where its graph breaks, the slots are
            real for a while, and hold for its parts that run eagerly too.
        frame: the forward pass under way, for compiled regions.
        prompt: the `generate` under way, for compiled regions.
        in_generators: the open steerings that were opened inside generators.
    """

    def __init__(self) -> None:
        self.parts: tuple[Bounds, ...] = ()
        self.reads: tuple[tuple[str, ...], ...] = ()
        self.lengths: tuple[Any, ...] = ()
        self.met: list[str] | None = None
        self.frame: Any = None
        self.prompt: Any = None
        self.in_generators: tuple[Entry, ...] = ()


class Entry:
    """One open steering of one model: an operator with resolved sites, bound once.

    Args:
        host: the model's host.
        operator: with resolved sites.
        devices: device of each site's block.
        prompt_length: real tokens of each row's prompt in plain forward passes; None: all of them.
        on_error: "raise", or "baseline" to leave a failing site as it is, loudly.

    Attributes:
        placed: puts its forwards in place once more, for what runs again in backward; None for a private copy.
        generators: the generators inside which it was opened.
        used, passed_by: whether a forward pass was steered by it, and whether one ran elsewhere, unsteered.
    """

    def __init__(
        self,
        host: Host,
        operator: Operator,
        devices: Callable[[Site], torch.device],
        prompt_length: Any = None,
        on_error: str = "raise",
    ) -> None:
        self.host, self.operator, self.on_error = host, operator, on_error
        self.prompt_length = None if prompt_length is None else as_prompt_length(prompt_length)
        self.closed = False
        self.serial = next(_serials)
        self.placed: Callable[[], contextlib.AbstractContextManager[Any]] | None = None
        self.generators: tuple[FrameType, ...] = ()
        self.used = self.passed_by = False
        self.opened_in = backward_task(), checkpoints()
        self.fallbacks = 0
        self.selections = Selections()
        self.overflow = Overflow()
        self.asks_prompts, self.token_scopes = asks_prompts(operator), token_scopes(operator)
        self.sites, self.read_sites = operator.sites, operator.reads
        self.reads = tuple(site.name for site in self.read_sites)
        # A direction that is being trained changes between forward passes, and its graph is freed by backward.
        self.live = any(leaf.requires_grad for leaf in pytree.tree_leaves(operator) if isinstance(leaf, Tensor))
        self.devices = {site.name: devices(site) for site in self.sites}
        self.part = self._bind()
        self._moved: dict[tuple[str, torch.device], Any] = {}

    @property
    def holds_rows(self) -> bool:
        """Whether it holds a value for each row of the batch that it was made for."""
        lengths = self.prompt_length
        return row_count(self.operator) is not None or (lengths is not None and lengths.numel() > 1)

    def _bind(self) -> Bounds:
        bound = {site.name: self.operator.bind_at(site, self.devices[site.name]) for site in self.sites}
        return {name: b for name, b in bound.items() if b is not None}

    def bounds(self) -> Bounds:
        """The bound operators by site name."""
        return self._bind() if self.live else self.part

    def bind_on(self, site: Site, device: torch.device) -> Any:
        """The bound operator for a device other than its block's (offloaded or moved blocks)."""
        key = (str(site), device)
        if key not in self._moved or self.live:
            self._moved[key] = self.operator.bind_at(site, device)
        return self._moved[key]


class Observation(Entry):
    """A forward pass that is run to look at it, with what it may leave out for that.

    Args:
        given: the host, operator, devices and prompt length of an entry.
        matter: the flat places of the tokens that are read, the only ones that the last block needs; None: all.
        trunk: what stands around the forwards of the first blocks, to note or repeat what they give; None: nothing.
        through: sites of blocks that take part besides (those of `trunk`, the last one for `matter`).
        selections: where it is recorded what scopes selected; None: nowhere else.
    """

    def __init__(
        self,
        *given: Any,
        matter: Tensor | None = None,
        trunk: Any = None,
        through: tuple[Site, ...] = (),
        selections: Selections | None = None,
    ) -> None:
        super().__init__(*given)
        self.matter, self.trunk, self.through = matter, trunk, through
        self.selections = selections or self.selections


_serials = itertools.count()
active: contextvars.ContextVar[tuple[Entry, ...]] = contextvars.ContextVar("steerfn_active", default=())


def entries_of(host: Host) -> tuple[Entry, ...]:
    """The steerings that the calling thread or task has open on a model, in opening order.

    A web framework may run each `next` of a generator in another copy of the context, which knows nothing of what was
    opened in the last one: whatever runs inside a generator is steered by what is open inside it.
    """
    known = tuple(e for e in active.get() if e.host is host and not e.closed)
    others = [e for e in host.in_generators if e not in known]
    if not others:
        return known
    running = set(_stack.generators())
    inside = [e for e in others if not running.isdisjoint(e.generators)]
    if not (known or inside):
        for entry in others:
            entry.passed_by = True
    return tuple(sorted((*known, *inside), key=lambda e: e.serial)) if inside else known
