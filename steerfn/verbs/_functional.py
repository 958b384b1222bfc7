"""The pure face: `f(op, *inputs)`, a steered forward that never touches the model."""

import contextlib
import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steerfn.model import Entry, Selections, Spine, device_of, layout, observe, plan, unwrap_model
from steerfn.operators import Number, Operator
from steerfn.values import ModelError, ShapeError, SteerError, SteeringVector, public
from steerfn.verbs._prepare_operator import Needs, check_needs, needs_of, prepare_operator
from steerfn.verbs._steer import as_steering, warn_of_empty


class Functional:
    """A model as a pure function of an operator and inputs; see `functional`."""

    def __init__(self, model: Any) -> None:
        self._root = unwrap_model(model)
        self._spines: dict[tuple[bool, bool], Spine] = {}
        self._lock = threading.RLock()
        _mark_constants()
        self._renew()

    def __repr__(self) -> str:
        return f"functional({type(self._root).__name__})"

    def __call__(
        self,
        op: Operator | SteeringVector,
        *args: Any,
        alpha: Number | None = None,
        params: Mapping[str, Tensor] | None = None,
        prompt_length: int | Sequence[int] | Tensor | None = None,
        strict: bool | str = False,
        **kwargs: Any,
    ) -> Any:
        """The model's own output under `op`.

        Args:
            op: an operator, or a vector, which means `add(vector, alpha)`.
            args: as the model's forward takes them.
            alpha: the strength of a vector (default 1); an operator has its own.
            params: parameters (and buffers) by name, used in place of the model's own.
            prompt_length: how many real tokens of each row are prompt (default: all).
            strict: True refuses vectors unless they were made from these very weights, "architecture" unless from a
                model of this architecture; see `check_match`.
            kwargs: as the model's forward takes them.
        """
        op = as_steering(op, alpha)
        if torch.compiler.is_compiling():
            return self._call_traced(op, args, params, prompt_length, strict, kwargs)
        return self._eager(op, args, params, prompt_length, strict, kwargs)

    def _renew(self, *, whole: bool = False, traced: bool = False) -> Spine:
        """The private copy, made anew where the model's structure has changed since."""
        self._layout = layout(self._root, check=not torch.compiler.is_compiling())  # no forward pass inside a trace
        spine = self._spines.get((whole, traced))
        if spine is None or not spine.refresh():
            spine = self._spines[whole, traced] = Spine(self._root, self._layout, plan(self._layout), whole=whole)
        return spine

    def _eager(self, op: Operator, args: Any, params: Any, prompt_length: Any, strict: bool | str, kwargs: Any) -> Any:
        # Where compiled code falls back to this, its blocks would be compiled apart, and see no context variables.
        run: Any = torch.compiler.disable(self._run)
        # functional_call puts the parameters into one private copy, one call at a time.
        with contextlib.nullcontext() if params is None else self._lock:
            return run(op, args, params, prompt_length, strict, kwargs)

    def _run(self, op: Operator, args: Any, params: Any, prompt_length: Any, strict: bool | str, kwargs: Any) -> Any:
        spine = self._renew(whole=params is not None)
        operator = prepare_operator(op, self._root, self._layout, strict=strict)
        if params is not None:
            _check_params(spine.root, params)
        entry = Entry(spine.host, operator, lambda site: device_of(self._root, self._layout, site), prompt_length)
        out = observe(lambda: _call(spine.root, params, args, kwargs), entry)
        warn_of_empty(entry.selections)
        entry.overflow.close()
        return out

    def _call_traced(
        self, operator: Operator, args: Any, params: Any, prompt_length: Any, strict: bool | str, kwargs: Any
    ) -> Any:
        """The same in one graph of `torch.compile`, where the operator reaches the blocks by plain slots."""
        if not torch.compiler.is_compiling():  # the graph broke before it began
            return self._eager(operator, args, params, prompt_length, strict, kwargs)
        whole = params is not None
        self._renew_traced(whole)
        spine = self._spines[whole, True]
        if spine.is_stale():
            raise ModelError(f"The {self!r} has changed while it was traced; call it again.")
        refusal = self._refusal(strict, needs_of(operator, widths=False), tuple(params) if whole else ())
        if refusal is not None:
            raise SteerError(refusal)
        operator = operator.resolve(self._layout.n_layers)
        for vector in operator.vectors:
            for site, direction in zip(vector.sites, vector._directions, strict=True):
                if direction.shape[-1] != self._layout.width(site):  # compared here: traced sizes are not constants
                    raise ShapeError(
                        f"The direction at {site.name} has another width than {self._layout.width(site)}, which is the "
                        f"width of {self._layout.model} there: this vector was made for another model."
                    )
        bound = {site.name: operator.bind_at(site) for site in operator.sites}
        part = {name: b for name, b in bound.items() if b is not None}
        host = spine.host
        if host.met is not None:
            raise SteerError(
                "A compiled pure view whose graph breaks is running in another thread; give each thread a view of its "
                "own, torch.compile(sf.functional(model)), or compile with fullgraph=True to see where it breaks."
            )
        try:
            host.parts, host.reads = (part,), (tuple(site.name for site in operator.reads),)
            host.lengths, host.met = (prompt_length,), []
            out = _call(spine.root, params, args, kwargs)
            missed = tuple(name for name in part if name not in host.met)
        finally:
            host.parts = host.reads = host.lengths = ()
            host.met = None
        self._warn(missed)
        return out

    # What runs while code is traced, and not when the code runs (`_mark_constants`).

    def _renew_traced(self, whole: bool) -> None:
        self._renew(whole=whole, traced=True)

    def _refusal(self, strict: bool | str, needs: Needs, params: tuple[str, ...]) -> str | None:
        """Why an operator or the names of parameters do not fit the model."""
        try:
            check_needs(needs, self._root, self._layout, strict=strict)
            _check_names(self._root, params)
        except SteerError as error:
            return str(error)
        return None

    def _warn(self, missed: tuple[str, ...]) -> None:
        selections = Selections()
        selections.sites = dict.fromkeys(missed, False)
        warn_of_empty(selections)


@functools.cache
def _mark_constants() -> None:
    """Tell `torch.compile` which methods run while it traces: not before there is a model, for that imports a lot."""
    for method in (Functional._renew_traced, Functional._refusal, Functional._warn):
        torch.compiler.assume_constant_result(method)


def _call(root: nn.Module, params: Any, args: Any, kwargs: Any) -> Any:
    return root(*args, **kwargs) if params is None else torch.func.functional_call(root, params, args, kwargs)


def _check_params(root: nn.Module, params: Any) -> None:
    """Refuse parameters that the model lacks, or that are split otherwise than the model's."""
    if not isinstance(params, Mapping):
        raise SteerError(
            "params is a mapping of names to tensors, such as dict(model.named_parameters()), not a "
            f"{type(params).__name__}."
        )
    known = _check_names(root, params)
    whole = [name for name, value in params.items() if _is_split(known[name]) and not _is_split(value)]
    if whole:
        raise SteerError(
            f"params holds whole tensors where the model's are split over processes: {whole[:5]}; pass tensors that "
            "are split alike, such as those of model.named_parameters()."
        )


def _check_names(root: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """Refuse names that the model lacks (`functional_call` takes no notice of them), and give what it has."""
    known: dict[str, Any] = dict(root.named_parameters(remove_duplicate=False))
    known.update(root.named_buffers(remove_duplicate=False))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SteerError(
            f"params holds names that the model does not have: {unknown[:5]}; see model.named_parameters()."
        )
    return known


def _is_split(value: Any) -> bool:
    """Whether a tensor is a `DTensor`, of which each process of a tensor-parallel model holds a part."""
    return hasattr(value, "device_mesh")


@public
def functional(model: nn.Module) -> Functional:
    """A model as a pure function: `f(op, *inputs)` is the model's own output under `op`.

    The model is not touched, not even for the time of the call, so `f` is safe in every thread, and `torch.func`
    transforms reach the operator's tensors: `vmap` over alpha or over vectors, `grad` and `jvp` with respect to either.
    `f(sf.identity, ...)` is the model's output bit for bit; open `steer` contexts do not act in `f`.

    Args:
        model: any transformers causal LM.

    Raises:
        SteerError: an unsupported model; at the call, whatever `steer` raises on entry.

    Example:
        >>> import torch, steerfn as sf
        >>> from torch.nn.attention import SDPBackend, sdpa_kernel
        >>> f, alphas = sf.functional(model), torch.tensor([0.0, 2.0])
        >>> with sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule for vmap
        ...     logits = torch.func.vmap(lambda a: f(sf.add(v, a), **inputs).logits)(alphas)
        >>> logits.shape
        torch.Size([2, 1, 3, 49152])
    """
    return Functional(model)
