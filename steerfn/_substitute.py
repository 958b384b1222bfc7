"""The only file that touches a module.

Inside a context every module keeps its identity. Those at the sites, and those between the model and its blocks, get
an instance `forward` that acts there and looks like their own (`Shadow`): names, types, hooks, attributes and whoever
holds the module see the module, and `torch.compile` guards against it. It is put there once for all contexts that are
open on a model, and taken out when the last one closes.

A *spine* is the pure counterpart: a private copy of the modules from the model down to its sites, sharing
everything below and beside them, so that the model itself is never touched.
"""

import functools
import inspect
import threading
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from steerfn._blocks import Block, Layout, unwrapped
from steerfn._errors import SteerWarning
from steerfn._forward import Entry, Host, entries_of
from steerfn._interpose import AddendForward, BlockForward, Gate, HeadsForward, Interposed, TokenwiseForward
from steerfn._site import Site

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
    found: Plan = {path: (Gate,) for path in gates(layout)}
    for layer, kinds in wanted.items():
        block = layout.blocks[layer]
        found[block.path] = (functools.partial(BlockForward, layer=layer),)
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
        found.update({f"{block.path}.{path}": within[path] for path in within if path in needed})
    return found


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
    return unwrapped(module)._modules[name]  # pyright: ignore[reportReturnType]


def walk(root: nn.Module, path: str) -> tuple[nn.Module, str, nn.Module]:
    """The parent, the name and the module at a path, past `torch.compile`."""
    *above, name = path.split(".")
    parent = root
    for part in above:
        parent = child(parent, part)
    parent = unwrapped(parent)
    return parent, name, child(parent, name)


def around(forward: Any, module: nn.Module, makes: tuple[Make, ...], host: Host) -> Any:
    """The forwards that act at a module's sites, one around the other, the innermost around `forward`."""
    for make in makes:
        outer = make(host, module)
        outer.inner = forward
        forward = outer.forward
    return forward


ABSENT: Any = object()
"""Stands for an attribute that an instance dict does not hold."""


class Shadow:
    """A method of a module with something around it, in the module's instance dict.

    The module stays the object that it was, so whatever others do to it, by whichever path they hold it, is done to
    the module. What they see in the method's place is bound to the module, as methods are, and has the name, signature
    and annotations of the method.

    A bound function, because `torch.compile` guards those by their code and a callable object by its identity: opening
    another context then compiles nothing.

    Args:
        module: the module.
        name: the method's name.
        make: makes what to call from the method without this shadow.
    """

    def __init__(self, module: nn.Module, name: str, make: Callable[[Any], Any]) -> None:
        self.module, self.name = module, name
        self.before = module.__dict__.get(name, ABSENT)
        self.value = in_place_of(self.own(), module, name, make(self.own()))
        self.value.__func__.shadow = self
        module.__dict__[name] = self.value

    def own(self) -> Any:
        """The method without this shadow: that of the instance dict, or of the class that the module has by then."""
        module, name = self.module, self.name

        def own(*args: Any, **kwargs: Any) -> Any:
            return getattr(type(module), name)(module, *args, **kwargs)

        return own if self.before is ABSENT else self.before

    def undo(self) -> None:
        """Take the shadow out, wherever in the instance dict others have put it meanwhile."""
        held = self.module.__dict__
        for name in [name for name, value in held.items() if value is self.value]:
            unshadow(held, name, self)


def unshadow(held: dict[str, Any], name: str, shadow: Shadow) -> None:
    """Put back into an instance dict what it held, or nothing, in place of a shadow."""
    if name != shadow.name:  # someone keeps the method under another name (accelerate's `_old_forward`)
        own = shadow.before
        held[name] = (
            types.MethodType(getattr(type(shadow.module), shadow.name), shadow.module) if own is ABSENT else own
        )
    elif shadow.before is ABSENT:
        del held[name]
    else:
        held[name] = shadow.before


def shadow_of(value: Any) -> Shadow | None:
    """The shadow that put a value into an instance dict, if one did."""
    return getattr(getattr(value, "__func__", None), "shadow", None)


def own_forward(module: nn.Module) -> Any:
    """The forward in a module's instance dict, without what an open context puts there; None: its class's own."""
    forward = module.__dict__.get("forward")
    shadow = shadow_of(forward)
    if shadow is not None:
        forward = None if shadow.before is ABSENT else shadow.before
    plain = type(forward) is types.MethodType and forward.__self__ is module
    return None if plain and forward.__func__ is type(module).forward else forward


def unshadowed(held: dict[str, Any]) -> dict[str, Any]:
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


def twin_of(module: nn.Module) -> nn.Module:
    """A shallow copy of a module: the same class, sharing every parameter, buffer, child and hook."""
    twin = object.__new__(type(module))
    held = unshadowed(module.__dict__)
    twin.__dict__.update(held)
    for name, value in held.items():
        # What an instance dict binds to the module itself (accelerate's forward) runs on the copy.
        if type(value) is types.MethodType and value.__self__ is module:
            twin.__dict__[name] = types.MethodType(value.__func__, twin)
        elif type(value) is functools.partial and any(arg is module for arg in value.args):
            bound = functools.partial(value.func, *(twin if a is module else a for a in value.args), **value.keywords)
            bound.__dict__.update(value.__dict__)
            twin.__dict__[name] = bound
        elif type(value) is types.FunctionType and value.__closure__:
            twin.__dict__[name] = rebound(value, module, twin)
    return twin


def rebound(function: Any, module: nn.Module, twin: nn.Module) -> Any:
    """A closure over a module (transformers' tensor-parallel forward is one) as a closure over its copy."""

    def moved(cell: Any) -> Any:
        try:
            held = cell.cell_contents
        except ValueError:  # a variable that is not set
            return cell
        if held is module:
            return types.CellType(twin)
        if type(held) is types.MethodType and held.__self__ is module:
            return types.CellType(types.MethodType(held.__func__, twin))
        return cell

    cells = tuple(map(moved, function.__closure__))
    if all(new is old for new, old in zip(cells, function.__closure__, strict=True)):
        return function
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def interpose(module: nn.Module, twin: nn.Module, makes: tuple[Make, ...], host: Host) -> None:
    """Give a copy of `module` an instance forward that acts at its sites, around its own forward."""
    forward: Any = twin.__dict__.get("forward") or types.MethodType(type(module).forward, twin)
    call = forward
    if twin.__dict__.get("_compiled_call_impl") is not None:
        # `module.compile()` traced the module itself: run that, hooks included, and act on what comes out.
        call = module
        twin.__dict__["_compiled_call_impl"] = None
        twin.__dict__.update({name: OrderedDict() for name in HOOKS if name in twin.__dict__})
    twin.__dict__["forward"] = in_place_of(forward, twin, "forward", around(call, module, makes, host))


HOOKS = (
    "_forward_hooks _forward_pre_hooks _forward_hooks_with_kwargs _forward_hooks_always_called "
    "_forward_pre_hooks_with_kwargs _backward_hooks _backward_pre_hooks"
).split()


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
            new: dict[tuple[int, str], Shadow] = {}
            try:
                sites = (*entry.sites, *entry.read_sites, *entry.through)
                for path, makes in plan(layout, sites, tokenwise=entry.matter is not None).items():
                    module = walk(root, path)[2] if path else root
                    # `module.compile()` traced the module itself: run that, hooks included, and act on what comes out.
                    compiled = module.__dict__.get("_compiled_call_impl") is not None
                    name = "_compiled_call_impl" if compiled else "forward"
                    self._shadow(
                        module, name, functools.partial(around, module=module, makes=makes, host=self.host), new
                    )
                for module in (root, *(walk(root, path)[2] for path in gates(layout) if path)):
                    for name, make in shadows.items():
                        if name in module.__dict__ or hasattr(type(module), name):
                            self._shadow(module, name, make, new)
            except BaseException:
                _undo(new)
                raise
            self._placed.update(new)
            self._users += 1
            self.host.parts = (*self.host.parts, entry.part)
            self.host.reads = (*self.host.reads, entry.reads)
            length = None if entry.prompt_length is None else torch.as_tensor(entry.prompt_length)
            self.host.lengths = (*self.host.lengths, length)  # a tensor: another length compiles nothing

    def _shadow(
        self, module: nn.Module, name: str, make: Callable[[Any], Any], new: dict[tuple[int, str], Shadow]
    ) -> None:
        for each, how in {"__getstate__": _state, "_replicate_for_data_parallel": self._replica, name: make}.items():
            key = (id(module), each)
            if key not in self._placed and key not in new:
                new[key] = Shadow(module, each, how)

    def _replica(self, own: Any) -> Any:
        """What `nn.DataParallel` runs in threads of its own: a plain copy, and a warning where that loses a steering."""

        def replica() -> nn.Module:
            if entries_of(self.host):
                warnings.warn(
                    "nn.DataParallel runs copies of the model in threads of its own, which no context steers: its "
                    "output is unsteered; call the model itself inside the context, or open the context in a process "
                    "for each device.",
                    SteerWarning,
                    stacklevel=3,
                )
            made = own()
            made.__dict__ = unshadowed(made.__dict__)
            return made

        return replica

    def close(self, entry: Entry) -> None:
        """Leave; the last to leave puts everything back."""
        with self._lock:
            self._users -= 1
            left = [i for i, part in enumerate(self.host.parts) if part is not entry.part]
            self.host.parts = tuple(self.host.parts[i] for i in left)
            self.host.reads = tuple(self.host.reads[i] for i in left)
            self.host.lengths = tuple(self.host.lengths[i] for i in left)
            if self._users == 0:
                _undo(self._placed)
                self._placed = {}


def _state(own: Any) -> Any:
    """What is pickled or deep-copied of a module: itself without shadows."""
    return lambda: unshadowed(own())


def _undo(placed: dict[tuple[int, str], Shadow]) -> None:
    for shadow in reversed(placed.values()):
        shadow.undo()


# Keyed by the list of blocks, which is never cloned, so that every way to reach a model shares them.
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
    found = next((p.device for p in block.parameters()), torch.device("cpu"))
    hook = getattr(block, "_hf_hook", None)
    moved = getattr(hook, "execution_device", None)
    if found.type == "meta":
        return torch.device("cpu") if moved is None else torch.device(moved)
    return found


class Spine:
    """A private copy of a model from the top down to its sites, the rest shared: for pure steering.

    Args:
        root: the model; never touched.
        layout: its layout.
        plan: what to substitute in the copy (default: every site).
        whole: copy every module with parameter and buffer dictionaries of its own, so that
            `torch.func.functional_call` on the copy touches nothing of the model.
        host: the model's own, for steerings that are open on the model to reach the copy (default: one of its own).
    """

    def __init__(
        self, root: nn.Module, layout: Layout, plan: Plan, *, whole: bool = False, host: Host | None = None
    ) -> None:
        self.host = Host() if host is None else host
        self.copies: dict[str, _Copy] = {}
        paths = {""} | {path.rsplit(".", n)[0] for path in plan if path for n in range(path.count(".") + 1)}
        self.root = self._copy(root, "", paths, whole, {})
        for path, makes in plan.items():
            copy = self.copies[path]
            interpose(copy.module, copy.twin, makes, self.host)
            copy.own["forward"] = copy.twin.__dict__["forward"]

    def _copy(
        self, module: nn.Module, path: str, paths: set[str], whole: bool, memo: dict[int, nn.Module]
    ) -> nn.Module:
        copy = self.copies[path] = _Copy(module, whole)
        memo[id(module)] = copy.twin
        for name, inner in module._modules.items():
            if inner is None:
                continue
            inner, below = unwrapped(inner), f"{path}.{name}" if path else name
            if below in paths or (whole and id(inner) not in memo):
                inner = self._copy(inner, below, paths, whole, memo)
            copy.own["_modules"][name] = memo.get(id(inner), inner) if whole else inner
        return copy.twin

    def evaluate(self) -> None:
        """Put the copies in evaluation mode, whatever mode their modules are in."""
        for copy in self.copies.values():
            copy.own["training"] = copy.twin.__dict__["training"] = False

    def refresh(self) -> bool:
        """Take over what changed on the modules (`training`, hooks); False where the structure changed."""
        return all(copy.refresh() for copy in self.copies.values())

    def changed(self) -> bool:
        """Whether the modules hold others or are in another mode than their copies; compiled code guards by it."""
        return any(copy.changed() for copy in self.copies.values())


INSTALLED = "_output_capturing_hooks_installed"
"""Where transformers 5 notes on a model that the hooks behind `output_hidden_states=True` are in place."""


class _Installed:
    """That note on a copy. The hooks are shared with the model, so when asked it has the model install them, once."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __bool__(self) -> bool:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks

        maybe_install_capturing_hooks(self.module)  # pyright: ignore[reportArgumentType]
        return True


class _Copy:
    """One module of a spine: the module, its copy, and what is the copy's own."""

    def __init__(self, module: nn.Module, whole: bool) -> None:
        self.module, self.twin = module, twin_of(module)
        held = unshadowed(module.__dict__)
        self.own = {n: v for n, v in self.twin.__dict__.items() if held.get(n) is not v}
        # Code that `module.compile()` made runs the module's own children, never those of a copy.
        self.own.update({"_modules": dict(module._modules), "_compiled_call_impl": None})
        if getattr(type(module), "_can_record_outputs", None) is not None:
            self.own[INSTALLED] = _Installed(module)
        self.shared = ("_parameters", "_buffers") if whole else ()
        self.own.update({name: dict(module.__dict__[name]) for name in self.shared})
        self.twin.__dict__.update(self.own)
        self.children = list(module._modules.values())
        self.forwards = own_forward(module), type(module).forward

    def refresh(self) -> bool:
        """Take over the module's attributes; False where its children or its forward are others than they were."""
        present = self.module._modules.values()
        if len(present) != len(self.children) or self.forwards != (own_forward(self.module), type(self.module).forward):
            return False
        if any(now is not then for now, then in zip(present, self.children, strict=True)):
            return False
        # In one step: another thread may be running this copy, and must never meet the model's own children in it.
        self.twin.__dict__.update({**unshadowed(self.module.__dict__), **self.own})
        for name in self.shared:
            self.own[name].update(self.module.__dict__[name])
        return True

    def changed(self) -> bool:
        """Whether the module holds others than it did, or is in another mode than the copy."""
        if self.module.training != self.twin.training or len(self.module._modules) != len(self.children):
            return True
        return any(now is not then for now, then in zip(self.module._modules.values(), self.children, strict=True))
