"""Clone-and-swap: the only file that touches a module.

A *clone* is a shallow copy of a module: the same class and the same parameter, buffer, child and hook
dictionaries, with an instance `forward` that acts at a site. Put in the parent's `_modules` it changes neither
names nor types, and `torch.compile`d code sees it. It is put there once for all contexts that are open on
a model and taken out when the last one closes.

A *spine* is the pure counterpart: a private copy of the modules from the model down to its sites, sharing
everything below and beside them, so that the model itself is never touched.
"""

import functools
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from steerfn._blocks import Block, Layout, unwrapped
from steerfn._checkpoint import CHECKPOINT, Checkpoint
from steerfn._forward import Entry, Host
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


def original_of(module: Any) -> Any:
    """The module that a clone stands for; any other module is its own."""
    forward = None if module is None else module.__dict__.get("forward")
    owner = getattr(forward, "__self__", None)
    return owner.original if isinstance(owner, Interposed) else module


def child(module: nn.Module, name: str) -> nn.Module:
    """A module's own child of that name, seen past clones and past `torch.compile`."""
    return original_of(unwrapped(original_of(module))._modules[name])


def walk(root: nn.Module, path: str) -> tuple[nn.Module, str, nn.Module]:
    """The parent, the name and the module at a path, past clones and past `torch.compile`."""
    *above, name = path.split(".")
    parent = root
    for part in above:
        parent = child(parent, part)
    parent = unwrapped(parent)
    return parent, name, child(parent, name)


def twin_of(module: nn.Module) -> nn.Module:
    """A shallow copy of a module: the same class, sharing every parameter, buffer, child and hook."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
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
    forward: Any = twin.__dict__.pop("forward", None) or types.MethodType(type(module).forward, twin)
    if twin.__dict__.get("_compiled_call_impl") is not None:
        # `module.compile()` traced the module itself: run that, hooks included, and act on what comes out.
        forward = module
        twin.__dict__["_compiled_call_impl"] = None
        twin.__dict__.update({name: OrderedDict() for name in HOOKS if name in twin.__dict__})
    twin.__dict__["forward"] = around(forward, module, makes, host)
    if hasattr(module, "gradient_checkpointing"):
        twin.__dict__[CHECKPOINT] = Checkpoint(host, module).call


HOOKS = (
    "_forward_hooks _forward_pre_hooks _forward_hooks_with_kwargs _forward_hooks_always_called "
    "_forward_pre_hooks_with_kwargs _backward_hooks _backward_pre_hooks"
).split()


def around(forward: Any, module: nn.Module, makes: tuple[Make, ...], host: Host) -> Any:
    """The forwards that act at a module's sites, one around the other, the innermost around `forward`."""
    for make in makes:
        outer = make(host, module)
        outer.inner = forward
        forward = outer.forward
    return forward


class Swap:
    """A clone in its parent's place for a module."""

    def __init__(self, parent: nn.Module, name: str, module: nn.Module, makes: tuple[Make, ...], host: Host) -> None:
        self.parent, self.name, self.module, self.twin = parent, name, module, twin_of(module)
        interpose(module, self.twin, makes, host)
        self.at_first = dict(self.twin.__dict__)
        parent._modules[name] = self.twin

    def undo(self) -> None:
        """Put the module back, with whatever was set on the clone meanwhile (`training`, say)."""
        for name, value in self.twin.__dict__.items():
            if name not in self.at_first or self.at_first[name] is not value:
                self.module.__dict__[name] = value
        for name in self.at_first.keys() - self.twin.__dict__.keys():
            self.module.__dict__.pop(name, None)
        # Another module that someone put in this place inside the context stays.
        if self.parent._modules.get(self.name) is self.twin:
            self.parent._modules[self.name] = self.module


class Shadow:
    """A method of the model itself, shadowed in its instance dict."""

    def __init__(self, module: nn.Module, name: str, value: Any) -> None:
        self.module, self.name, self.value = module, name, value
        self.before = module.__dict__.get(name, Shadow)
        module.__dict__[name] = value

    def undo(self) -> None:
        """Restore what was there, or that nothing was."""
        if self.module.__dict__.get(self.name) is not self.value:
            return
        if self.before is Shadow:
            del self.module.__dict__[self.name]
        else:
            self.module.__dict__[self.name] = self.before


Shadows = dict[str, Callable[[Any], Any]]
"""What to put in place of a method of the model, made from the method."""


class Substitutions:
    """The substitutions in one list of blocks, shared by every context that is open on it."""

    def __init__(self) -> None:
        self.host = Host()
        self._lock = threading.Lock()
        self._users = 0
        self._placed: dict[tuple[int, str], Swap | Shadow] = {}

    def open(self, root: nn.Module, layout: Layout, entry: Entry, shadows: Shadows) -> None:
        """Put clones where a steering needs them, and shadows on methods of the model; all or nothing."""
        with self._lock:
            new: dict[tuple[int, str], Swap | Shadow] = {}
            try:
                sites = (*entry.sites, *entry.read_sites, *entry.through)
                for path, makes in plan(layout, sites, tokenwise=entry.matter is not None).items():
                    if path == "":  # the blocks are the model's own children, so the model is the gate
                        gate = functools.partial(around, module=root, makes=makes, host=self.host)
                        self._shadow(root, "forward", gate, new)
                        continue
                    parent, name, module = walk(root, path)
                    key = (id(parent), name)
                    if key not in self._placed and key not in new:
                        new[key] = Swap(parent, name, module, makes, self.host)
                for name, make in shadows.items():
                    self._shadow(root, name, make, new)
            except BaseException:
                _undo(new)
                raise
            self._placed.update(new)
            self._users += 1
            self.host.parts = (*self.host.parts, entry.part)
            self.host.reads = (*self.host.reads, entry.reads)

    def _shadow(self, root: nn.Module, name: str, make: Callable[[Any], Any], new: dict[Any, Any]) -> None:
        key = (id(root), f"{name}()")
        if key not in self._placed and hasattr(root, name):
            new[key] = Shadow(root, name, make(getattr(root, name)))

    def close(self, entry: Entry) -> None:
        """Leave; the last to leave puts everything back."""
        with self._lock:
            self._users -= 1
            left = [i for i, part in enumerate(self.host.parts) if part is not entry.part]
            self.host.parts = tuple(self.host.parts[i] for i in left)
            self.host.reads = tuple(self.host.reads[i] for i in left)
            if self._users == 0:
                if self.host.checkpointed:
                    _keep_children([change for change in self._placed.values() if isinstance(change, Swap)])
                _undo(self._placed)
                self._placed = {}


def _undo(placed: dict[Any, Any]) -> None:
    for change in reversed(placed.values()):
        change.undo()


def _keep_children(swaps: list[Swap]) -> None:
    """Let clones have their children as they are now, however the model's own change.

    A block that is checkpointed runs again in backward, perhaps after its context closed and the clones inside it
    were taken out of the model.
    """
    known = {swap.twin for swap in swaps}

    def keep(twin: nn.Module) -> None:
        own = dict(twin._modules)
        for name, inner in own.items():
            if inner is not None and not known.isdisjoint(inner.modules()):
                own[name] = inner if inner in known else twin_of(inner)
                if inner not in known:
                    keep(own[name])
        twin.__dict__["_modules"] = own

    for swap in swaps:
        keep(swap.twin)
        swap.at_first["_modules"] = swap.twin._modules


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
    """

    def __init__(self, root: nn.Module, layout: Layout, plan: Plan, *, whole: bool = False) -> None:
        self.host = Host()
        self.copies: dict[str, _Copy] = {}
        paths = {""} | {path.rsplit(".", n)[0] for path in plan if path for n in range(path.count(".") + 1)}
        self.root = self._copy(root, "", paths, whole, {})
        for path, makes in plan.items():
            copy = self.copies[path]
            interpose(copy.module, copy.twin, makes, self.host)
            copy.own.update({n: copy.twin.__dict__[n] for n in ("forward", CHECKPOINT) if n in copy.twin.__dict__})

    def _copy(
        self, module: nn.Module, path: str, paths: set[str], whole: bool, memo: dict[int, nn.Module]
    ) -> nn.Module:
        copy = self.copies[path] = _Copy(module, whole)
        memo[id(module)] = copy.twin
        for name, inner in module._modules.items():
            if inner is None:
                continue
            inner, below = unwrapped(original_of(inner)), f"{path}.{name}" if path else name
            if below in paths or (whole and id(inner) not in memo):
                inner = self._copy(inner, below, paths, whole, memo)
            copy.own["_modules"][name] = memo.get(id(inner), inner) if whole else inner
        return copy.twin

    def refresh(self) -> bool:
        """Take over what changed on the modules (`training`, hooks); False where the structure changed."""
        return all(copy.refresh() for copy in self.copies.values())


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
        self.own = {n: v for n, v in self.twin.__dict__.items() if module.__dict__.get(n) is not v}
        # Code that `module.compile()` made runs the module's own children, never those of a copy.
        self.own.update({"_modules": dict(module._modules), "_compiled_call_impl": None})
        if getattr(type(module), "_can_record_outputs", None) is not None:
            self.own[INSTALLED] = _Installed(module)
        self.shared = ("_parameters", "_buffers") if whole else ()
        self.own.update({name: dict(module.__dict__[name]) for name in self.shared})
        self.twin.__dict__.update(self.own)
        self.children = [original_of(inner) for inner in module._modules.values()]

    def refresh(self) -> bool:
        """Take over the module's attributes; False where its children are others than they were."""
        present = self.module._modules.values()
        if len(present) != len(self.children):
            return False
        if any(
            now is not then and original_of(now) is not then for now, then in zip(present, self.children, strict=True)
        ):
            return False
        # In one step: another thread may be running this copy, and must never meet the model's own children in it.
        self.twin.__dict__.update({**self.module.__dict__, **self.own})
        for name in self.shared:
            self.own[name].update(self.module.__dict__[name])
        return True
