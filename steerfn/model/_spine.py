"""A *spine*: a private copy of the modules from a model down to its sites, for pure steering.

It shares everything below and beside them, so that the model itself is never touched.
"""

import functools
import types
from collections import OrderedDict
from typing import Any

from torch import nn

from steerfn.model._blocks import Layout, unwrap_model
from steerfn.model._checkpoint import CHECKPOINT, Checkpoint
from steerfn.model._entry import Host
from steerfn.model._substitute import Make, Plan, around, in_place_of, own_forward, without_shadows


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
            copy.own.update({n: copy.twin.__dict__[n] for n in ("forward", CHECKPOINT) if n in copy.twin.__dict__})

    def _copy(
        self, module: nn.Module, path: str, paths: set[str], whole: bool, memo: dict[int, nn.Module]
    ) -> nn.Module:
        copy = self.copies[path] = _Copy(module, whole)
        memo[id(module)] = copy.twin
        for name, inner in module._modules.items():
            if inner is None:
                continue
            inner, below = unwrap_model(inner), f"{path}.{name}" if path else name
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

    def is_stale(self) -> bool:
        """Whether the modules hold others or are in another mode than their copies; compiled code guards by it."""
        return any(copy.is_stale() for copy in self.copies.values())


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
        held = without_shadows(module.__dict__)
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
        if self._holds_others() or self.forwards != (own_forward(self.module), type(self.module).forward):
            return False
        # In one step: another thread may be running this copy, and must never meet the model's own children in it.
        self.twin.__dict__.update({**without_shadows(self.module.__dict__), **self.own})
        for name in self.shared:
            self.own[name].update(self.module.__dict__[name])
        return True

    def is_stale(self) -> bool:
        """Whether the module holds others than it did, or is in another mode than the copy."""
        return self.module.training != self.twin.training or self._holds_others()

    def _holds_others(self) -> bool:
        present = self.module._modules.values()
        if len(present) != len(self.children):
            return True
        return any(now is not then for now, then in zip(present, self.children, strict=True))


def twin_of(module: nn.Module) -> nn.Module:
    """A shallow copy of a module: the same class, sharing every parameter, buffer, child and hook."""
    twin = object.__new__(type(module))
    held = without_shadows(module.__dict__)
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

    def rebind_cell(cell: Any) -> Any:
        try:
            held = cell.cell_contents
        except ValueError:  # a variable that is not set
            return cell
        if held is module:
            return types.CellType(twin)
        if type(held) is types.MethodType and held.__self__ is module:
            return types.CellType(types.MethodType(held.__func__, twin))
        return cell

    cells = tuple(map(rebind_cell, function.__closure__))
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
    if hasattr(module, "gradient_checkpointing"):  # which may be switched on, off and over while the copy exists
        twin.__dict__[CHECKPOINT] = Checkpoint(host, lambda: without_shadows(module.__dict__)[CHECKPOINT]).call


HOOKS = (
    "_forward_hooks _forward_pre_hooks _forward_hooks_with_kwargs _forward_hooks_always_called "
    "_forward_pre_hooks_with_kwargs _backward_hooks _backward_pre_hooks"
).split()
