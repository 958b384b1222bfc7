"""The pure face: `f(op, *inputs)`, a steered forward that never touches the model."""

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from steerfn import _forward
from steerfn._blocks import unwrapped
from steerfn._errors import SteerError
from steerfn._forward import Entry
from steerfn._layout import layout
from steerfn._steer import as_steering, prepared, warn_of_empty
from steerfn._substitute import Spine, device_of, plan


class Functional:
    """A model as a pure function of an operator and inputs; see `functional`."""

    def __init__(self, model: Any) -> None:
        self._root = unwrapped(model)
        self._layout = layout(self._root)
        self._plan = plan(self._layout)
        self._spine = Spine(self._root, self._layout, self._plan)
        self._whole: Spine | None = None
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"functional({type(self._root).__name__})"

    def __call__(
        self, op: Any, *args: Any, params: Any = None, prompt_length: Any = None, strict: bool = False, **kwargs: Any
    ) -> Any:
        """The model's own output under `op`.

        Args:
            op: an operator, or a vector, which means `add(vector)`.
            args: as the model's forward takes them.
            params: parameters (and buffers) by name, used in place of the model's own.
            prompt_length: how many real tokens of each row are prompt (default: all).
            strict: raise where a vector was made for another model.
            kwargs: as the model's forward takes them.
        """
        if torch.compiler.is_compiling():
            return self._traced(op, args, params, kwargs)
        operator = prepared(as_steering(op), self._root, self._layout, strict=strict)
        if params is None:
            return self._run(self._fresh("_spine", whole=False), operator, None, prompt_length, args, kwargs)
        with self._lock:  # functional_call puts the parameters into one private copy, one call at a time
            return self._run(self._fresh("_whole", whole=True), operator, params, prompt_length, args, kwargs)

    def _fresh(self, name: str, *, whole: bool) -> Spine:
        """The private copy, made anew where the model's structure has changed."""
        spine: Spine | None = getattr(self, name)
        if spine is None or not spine.refresh():
            self._layout = layout(self._root)
            self._plan = plan(self._layout)
            spine = Spine(self._root, self._layout, self._plan, whole=whole)
            setattr(self, name, spine)
        return spine

    def _run(self, spine: Spine, operator: Any, params: Any, prompt_length: Any, args: Any, kwargs: Any) -> Any:
        entry = Entry(spine.host, operator, lambda site: device_of(self._root, self._layout, site), prompt_length)
        token = _forward.active.set((*_forward.active.get(), entry))
        try:
            out = _call(spine.root, params, args, kwargs)
        finally:
            _forward.active.reset(token)
        warn_of_empty(entry.selections)
        entry.overflow.close()
        return out

    def _traced(self, op: Any, args: Any, params: Any, kwargs: Any) -> Any:
        """The same inside `torch.compile`, where operators reach the blocks through a plain slot."""
        spine = self._spine
        operator = as_steering(op).resolve(self._layout.n_layers)
        bound = {site.name: operator.bind_at(site) for site in operator.sites}
        spine.host.parts = ({name: b for name, b in bound.items() if b is not None},)
        spine.host.reads = (tuple(site.name for site in operator.reads),)
        out = _call(spine.root, params, args, kwargs)
        spine.host.parts = spine.host.reads = ()
        return out


def _call(root: nn.Module, params: Any, args: Any, kwargs: Any) -> Any:
    if params is None:
        return root(*args, **kwargs)
    if not torch.compiler.is_compiling():
        _check_names(root, params)
    return torch.func.functional_call(root, params, args, kwargs)


def _check_names(root: nn.Module, params: Any) -> None:
    """Refuse names that the model lacks: `functional_call` takes no notice of them."""
    if not isinstance(params, Mapping):
        raise SteerError(
            "params is a mapping of names to tensors, such as dict(model.named_parameters()), not a "
            f"{type(params).__name__}."
        )
    known: dict[str, Any] = dict(root.named_parameters(remove_duplicate=False))
    known.update(root.named_buffers(remove_duplicate=False))
    unknown = [name for name in params if name not in known]
    if unknown:
        raise SteerError(
            f"params holds names that the model does not have: {unknown[:5]}; see model.named_parameters()."
        )
    whole = [name for name, value in params.items() if _is_split(known[name]) and not _is_split(value)]
    if whole:
        raise SteerError(
            f"params holds whole tensors where the model's are split over processes: {whole[:5]}; pass tensors that "
            "are split alike, such as those of model.named_parameters()."
        )


def _is_split(value: Any) -> bool:
    """Whether a tensor is a `DTensor`, of which each process of a tensor-parallel model holds a part."""
    return hasattr(value, "device_mesh")


def functional(model: Any) -> Functional:
    """A model as a pure function: `f(op, *inputs)` is the model's own output under `op`.

    The model is not touched, not even for the time of the call, so `f` is safe in every thread, and
    `torch.func` transforms reach the operator's tensors: `vmap` over alpha or over vectors, `grad` and `jvp`
    with respect to either. `f(sf.identity, ...)` is the model's output bit for bit; open contexts do not
    reach `f`.

    Args:
        model: any transformers causal LM.

    Raises:
        SteerError: an unsupported model; at the call, whatever `steer` raises on entry.

    Example:
        >>> import torch, steerfn as sf
        >>> f = sf.functional(model)  # doctest: +SKIP
        >>> logits = torch.func.vmap(lambda a: f(sf.add(v, a), **inputs).logits)(alphas)  # doctest: +SKIP
    """
    return Functional(model)
