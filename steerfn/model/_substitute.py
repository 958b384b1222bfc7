"""The only file that touches a module.

Inside a context every module keeps its identity. Those at the sites, and those between the model and its blocks, get
an instance `forward` that acts there and looks like their own (`Shadow`): names, types, hooks, attributes and whoever
holds the module see the module, and `torch.compile` guards against it. It is put there once for all contexts that are
open on a model, and taken out when the last one closes.
"""

import contextlib
import functools
import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from steerfn.model._blocks import Block, Layout, unwrap_model
from steerfn.model._checkpoint import CHECKPOINT, Checkpoint
from steerfn.model._entry import Entry, Host, Observation, entries_of
from steerfn.model._forwards import AddendForward, BlockForward, Gate, HeadsForward, Interposed, TokenwiseForward
from steerfn.values import ModelError, Site, warn

Make = Callable[[Host, nn.Module], Interposed]
Plan = dict[str, tuple[Make, ...]]
"""What stands in for which module, by path, parents first; of several, the innermost first."""


BLOCK_KINDS = {"resid_pre", "resid_post"}
"""The sites for which a block's own forward is enough."""


def plan(layout: Layout, sites: Iterable[Site] | None = None, *, tokenwise: bool = False) -> Plan:
    """The modules to substitute for some sites, or for every site of the model, gates included.

    `tokenwise` adds those of the deepest block that take every token alone.
    """
    wanted: dict[int, set[str]] = {}
    if sites is None:
        wanted = {layer: set(block.kinds) for layer, block in enumerate(layout.blocks)}
    for site in sites or ():
        wanted.setdefault(site.block, set()).add(site.kind)
    makes: Plan = {path: (Gate,) for path in gates(layout)}
    for layer, kinds in wanted.items():
        block = layout.blocks[layer]
        makes[block.path] = (functools.partial(BlockForward, layer=layer),)
        within: dict[str, tuple[Make, ...]] = {}
        needed: set[str] = set()
        for kind, path, make in _sublayers(layer, block) if kinds - BLOCK_KINDS else ():
            within[path] = (*within.get(path, ()), make)  # in BLOOM one module is the projection and the addend
            if kind in kinds or (kind == "attn_out" and "resid_mid" in kinds):
                needed.add(path)
        if tokenwise and layer == max(wanted):
            for path in (block.projection, block.mlp and block.mlp.path):
                if path is not None:
                    within[path] = (TokenwiseForward, *(within.get(path, ()) if path in needed else ()))
                    needed.add(path)
        makes.update({f"{block.path}.{path}": within[path] for path in within if path in needed})
    return makes


def plan_of(layout: Layout, *entries: Entry) -> Plan:
    """The modules to substitute for some entries."""
    looks = [entry for entry in entries if isinstance(entry, Observation)]
    sites = [site for entry in entries for site in (*entry.sites, *entry.read_sites)]
    sites += [site for look in looks for site in look.through]
    return plan(layout, sites, tokenwise=any(look.matter is not None for look in looks))


def _sublayers(layer: int, block: Block) -> Iterator[tuple[str, str, Make]]:
    """The sites inside a block: kind, path from the block, and the forward that acts there."""
    if block.projection is not None:
        heads = functools.partial(HeadsForward, layer=layer, heads=block.heads, d_head=block.d_head)
        yield "head_out", block.projection, heads
    for kind, addend in (("attn_out", block.attn), ("mlp_out", block.mlp)):
        if addend is not None:
            yield kind, addend.path, functools.partial(AddendForward, site=Site(kind, layer), scale=addend.scale)


def gates(layout: Layout) -> list[str]:
    """The modules between the model and its blocks, outermost first; the model itself ("") if there are none."""
    parts = layout.stack.split(".") if layout.stack else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))] or [""]


def child(module: nn.Module, name: str) -> nn.Module:
    """A module's own child of that name, seen past `torch.compile`."""
    return unwrap_model(module)._modules[name]  # pyright: ignore[reportReturnType]


def walk(root: nn.Module, path: str) -> tuple[nn.Module, str, nn.Module]:
    """The parent, the name and the module at a path, past `torch.compile`."""
    *above, name = path.split(".")
    parent = root
    for part in above:
        parent = child(parent, part)
    parent = unwrap_model(parent)
    return parent, name, child(parent, name)


def around(forward: Any, module: nn.Module, makes: tuple[Make, ...], host: Host) -> Any:
    """The forwards that act at a module's sites, one around the other, the innermost around `forward`."""
    for make in makes:
        outer = make(host, module)
        outer.inner = forward
        forward = outer.forward
    return forward


FORWARDS = ("forward", "_compiled_call_impl")
"""The attributes of a module that run it."""
ABSENT: Any = object()
"""Stands for an attribute that an instance dict does not hold."""


class Shadow:
    """A method of a module with something around it, in the module's instance dict.

    The module stays the object that it was, so whatever others do to it, by whichever path they hold it, is done to
    the module. What they see in the method's place is bound to the module, as methods are, and has the name, signature
    and annotations of the method.

    A bound function, because `torch.compile` guards those by their code and a callable object by its identity: opening
    another context then compiles nothing.

    `make` makes what to call of the method without this shadow.
    """

    def __init__(self, module: nn.Module, name: str, make: Callable[[Any], Any]) -> None:
        self.module, self.name = module, name
        self.before = module.__dict__.get(name, ABSENT)
        self.value: Any = in_place_of(self.own(), module, name, make(self.own()))
        self.value.__func__.shadow = self
        module.__dict__[name] = self.value

    def own(self) -> Any:
        """The method without this shadow: that of the instance dict, or of the class that the module has by then."""
        name = self.name

        def own(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            return getattr(type(module), name)(module, *args, **kwargs)

        return types.MethodType(own, self.module) if self.before is ABSENT else self.before

    def undo(self) -> None:
        """Take the shadow out, wherever in the instance dict others have put it meanwhile."""
        held = self.module.__dict__
        for name in [name for name, value in held.items() if value is self.value]:
            unshadow(held, name, self)


def unshadow(held: dict[str, Any], name: str, shadow: Shadow) -> None:
    """Put back into an instance dict what it held, or nothing, in place of a shadow."""
    if name != shadow.name:  # someone keeps the method under another name (accelerate's `_old_forward`)
        function = getattr(type(shadow.module), shadow.name)
        held[name] = types.MethodType(function, shadow.module) if shadow.before is ABSENT else shadow.before
    elif shadow.before is ABSENT:
        del held[name]
    else:
        held[name] = shadow.before


def shadow_of(value: Any) -> Shadow | None:
    """The shadow that put a value into an instance dict, if one did."""
    return getattr(getattr(value, "__func__", None), "shadow", None)


def _acts(module: nn.Module) -> bool:
    """Whether a module runs the forward that a context has put there, under whichever name others keep it."""
    shadows = map(shadow_of, module.__dict__.values())
    return any(shadow is not None and shadow.name in FORWARDS for shadow in shadows)


def own_forward(module: nn.Module) -> Any:
    """The forward in a module's instance dict, without what an open context puts there; None: its class's own."""
    forward = module.__dict__.get("forward")
    shadow = shadow_of(forward)
    if shadow is not None:
        forward = None if shadow.before is ABSENT else shadow.before
    if (
        isinstance(forward, types.MethodType)
        and forward.__self__ is module
        and forward.__func__ is type(module).forward
    ):
        return None
    return forward


def without_shadows(held: dict[str, Any]) -> dict[str, Any]:
    """A module's instance dict as it is while no context is open."""
    plain = dict(held)
    if "__getstate__" not in held:  # which a module with a shadow has
        return plain
    for name, value in held.items():
        shadow = shadow_of(value)
        if shadow is not None:
            unshadow(plain, name, shadow)
    return plain


def in_place_of(method: Any, module: nn.Module, name: str, call: Callable[..., Any]) -> Any:
    """A method bound to a module that calls `call` and looks like the module's own method."""

    def shadowing(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    function = getattr(type(module), name, None) if name not in module.__dict__ else getattr(method, "__func__", None)
    functools.update_wrapper(shadowing, method if function is None else function)
    shadowing.__signature__ = _signature(function) if function is not None else _with_self(method)
    return types.MethodType(shadowing, module)


@functools.cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def _with_self(method: Any) -> inspect.Signature:
    """The signature of a callable that is bound to a module, as that of a function that takes the module first."""
    signature = inspect.signature(method)
    module = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[module, *signature.parameters.values()])


Shadows = dict[str, Callable[[Any], Any]]
"""What to put in place of a method of the model, made from the method."""


class Substitutions:
    """The substitutions in one list of blocks, shared by every context that is open on it."""

    def __init__(self) -> None:
        self.host = Host()
        self._lock = threading.Lock()
        self._users = 0
        self._placed: dict[tuple[int, str], Shadow] = {}

    def open(self, root: nn.Module, layout: Layout, entry: Entry, shadows: Shadows) -> None:
        """Put forwards where a steering needs them, and shadows on methods of the model; all or nothing."""
        with self._lock:
            self._place(root, layout, entry, shadows)
            self.host.parts = (*self.host.parts, entry.part)
            self.host.reads = (*self.host.reads, entry.reads)
            length = None if entry.prompt_length is None else torch.as_tensor(entry.prompt_length)
            self.host.lengths = (*self.host.lengths, length)  # a tensor: another length compiles nothing
            entry.placed = functools.partial(self._again, root, layout, entry)
            if entry.generators:
                self.host.in_generators = (*self.host.in_generators, entry)

    @contextlib.contextmanager
    def place(self, root: nn.Module, layout: Layout, entry: Entry) -> Iterator[None]:
        """The forwards of an entry, for the time of a `with` block."""
        self.open(root, layout, entry, {})
        try:
            yield
        finally:
            self.close(entry)

    @contextlib.contextmanager
    def _again(self, root: nn.Module, layout: Layout, entry: Entry) -> Iterator[None]:
        """The forwards of a steering once more, perhaps after it closed, for what runs again in backward."""
        with self._lock:
            self._place(root, layout, entry, {})
        try:
            yield
        finally:
            with self._lock:
                self._leave()

    def _place(self, root: nn.Module, layout: Layout, entry: Entry, shadows: Shadows) -> None:
        shared = shared_sites(root, layout)
        new: dict[tuple[int, str], Shadow] = {}
        try:
            for path, makes in plan_of(layout, entry).items():
                if path in shared:
                    raise ModelError(
                        f"{layout.model} runs one module in two places, {path} and {shared[path]}, which a context "
                        "cannot tell apart; give each its own (copy.deepcopy), or use sf.functional(model), which can."
                    )
                module = walk(root, path)[2] if path else root
                # `module.compile()` traced the module itself: run that, hooks included, and act on what comes out.
                compiled = module.__dict__.get("_compiled_call_impl") is not None
                name = "_compiled_call_impl" if compiled else "forward"
                self._shadow(module, name, functools.partial(around, module=module, makes=makes, host=self.host), new)
                if CHECKPOINT in module.__dict__:
                    self._shadow(module, CHECKPOINT, lambda own: Checkpoint(self.host, lambda: own).call, new)
            for module in (root, *(walk(root, path)[2] for path in gates(layout) if path)):
                for name, make in shadows.items():
                    if name in module.__dict__ or hasattr(type(module), name):
                        self._shadow(module, name, make, new)
        except BaseException:
            _undo(new)
            raise
        self._placed.update(new)
        self._users += 1

    def _leave(self) -> None:
        self._users -= 1
        if self._users == 0:
            _undo(self._placed)
            self._placed = {}

    def _shadow(
        self, module: nn.Module, name: str, make: Callable[[Any], Any], new: dict[tuple[int, str], Shadow]
    ) -> None:
        for each, how in {"__getstate__": _state, "_replicate_for_data_parallel": self._replica, name: make}.items():
            key = (id(module), each)
            if key not in self._placed and key not in new:
                new[key] = Shadow(module, each, how)

    def _replica(self, own: Any) -> Any:
        """The replica that `nn.DataParallel` runs: a plain copy, with a warning where that loses a steering."""

        def replica() -> nn.Module:
            if entries_of(self.host):
                warn(
                    "nn.DataParallel runs copies of the model in threads of its own, which no context steers: its "
                    "output is unsteered; call the model itself inside the context, or open the context in a process "
                    "for each device."
                )
            made = own()
            made.__dict__ = without_shadows(made.__dict__)
            return made

        return replica

    def lost(self, root: nn.Module, layout: Layout, entry: Entry) -> list[str]:
        """The paths at which a steering acts no more: another module, or another forward, has taken its place."""
        paths = []
        for path in plan_of(layout, entry):
            try:
                module = walk(root, path)[2] if path else root
            except (KeyError, AttributeError):
                module = None
            # A wrapper put around the module (an adapter) still runs it.
            if module is None or not any(map(_acts, module.modules())):
                paths.append(path)
        return paths

    def close(self, entry: Entry) -> None:
        """Leave; the last to leave puts everything back."""
        with self._lock:
            left = [i for i, part in enumerate(self.host.parts) if part is not entry.part]
            self.host.parts = tuple(self.host.parts[i] for i in left)
            self.host.reads = tuple(self.host.reads[i] for i in left)
            self.host.lengths = tuple(self.host.lengths[i] for i in left)
            self.host.in_generators = tuple(e for e in self.host.in_generators if e is not entry)
            entry.generators = ()
            self._leave()


_shared: "weakref.WeakKeyDictionary[Layout, dict[str, str]]" = weakref.WeakKeyDictionary()


def shared_sites(root: nn.Module, layout: Layout) -> dict[str, str]:
    """The paths whose module is at another path too, with the other: its forward cannot tell which block runs it."""
    if layout not in _shared:
        seen: dict[int, str] = {}
        firsts = {path: seen.setdefault(id(walk(root, path)[2]), path) for path in plan(layout) if path}
        pairs = [(path, first) for path, first in firsts.items() if path != first]
        _shared[layout] = {a: b for one, other in pairs for a, b in ((one, other), (other, one))}
    return _shared[layout]


def _state(own: Any) -> Any:
    """The state of a module for pickle and deep copies: itself without shadows."""
    return lambda: without_shadows(own())


def _undo(placed: dict[tuple[int, str], Shadow]) -> None:
    for shadow in reversed(placed.values()):
        shadow.undo()


# Keyed by the list of blocks, so that every way to reach a model shares them.
# Substitutions hold no module while nothing is open, so it keeps no model alive.
_known: "weakref.WeakKeyDictionary[nn.Module, Substitutions]" = weakref.WeakKeyDictionary()
_known_lock = threading.Lock()


def substitutions_of(root: nn.Module, layout: Layout) -> Substitutions:
    """The substitutions of a model's blocks."""
    blocks, _, _ = walk(root, layout.blocks[0].path)
    with _known_lock:
        return _known.setdefault(blocks, Substitutions())


def device_of(root: nn.Module, layout: Layout, site: Site) -> torch.device:
    """Where a block computes: the device of its parameters, or the host's where they are offloaded."""
    _, _, block = walk(root, layout.blocks[site.block].path)
    device = next((p.device for p in block.parameters()), torch.device("cpu"))
    hook = getattr(block, "_hf_hook", None)
    moved = getattr(hook, "execution_device", None)
    if device.type == "meta":
        return torch.device("cpu") if moved is None else torch.device(moved)
    return device
