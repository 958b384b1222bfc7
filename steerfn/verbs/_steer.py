"""`with steer(model, v, alpha):` - a model steered in place, for the calling thread or task."""

import functools
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from steerfn.model import (
    CACHES,
    UNMET,
    Entry,
    Generation,
    Host,
    Layout,
    Selections,
    Shadows,
    Substitutions,
    active,
    device_of,
    entries_of,
    generation,
    generators,
    layout,
    padding_mask,
    reads_pads,
    substitutions_of,
    unwrap_model,
)
from steerfn.operators import Number, Operator, Scope, add, at
from steerfn.values import DataError, SteerError, SteeringVector, Unused, public, warn
from steerfn.verbs._prepare_operator import prepare_operator

log = logging.getLogger("steerfn")
STREAM = "steerfn-stream"
"""The name of the threads in which `stream` generates."""
NEVER_OPENED = "sf.steer(...) was called here and never opened, so it steered nothing; write `with sf.steer(...):`."


class Steering:
    """An open or closed steering of one model; see `steer`.

    Attributes:
        model: the model.
        operator: the operator.
        fallbacks: how often `on_error="baseline"` has left something unsteered.
    """

    def __init__(
        self,
        model: Any,
        operator: Operator,
        on_error: str = "raise",
        prompt_length: Any = None,
        strict: bool | str = False,
        selections: Selections | None = None,
    ) -> None:
        self.model, self.operator, self.fallbacks = model, operator, 0
        self._on_error, self._prompt_length, self._strict = on_error, prompt_length, strict
        self._selections = selections
        self._open: list[tuple[Substitutions, Entry, nn.Module, Layout] | None] = []
        self._unused: Unused | None = Unused(NEVER_OPENED)

    def __del__(self) -> None:
        if (unused := getattr(self, "_unused", None)) is not None:
            unused.warn()

    def __repr__(self) -> str:
        state = "open" if self._open else "not open: it steers inside `with sf.steer(...):`"
        return f"<steering of {type(self.model).__name__} by {self.operator!r:.200}, {state}>"

    def __enter__(self) -> "Steering":
        self._unused = None
        try:
            opened = self._prepare()
        except SteerError as error:
            if self._on_error != "baseline":
                raise
            self.fallbacks += 1
            log.error("steering could not be set up; the model runs unsteered (fallback %d): %s", self.fallbacks, error)
            self._open.append(None)
            return self
        active.set((*(e for e in active.get() if not e.closed), opened[1]))
        self._open.append(opened)
        return self

    def _prepare(self) -> tuple[Substitutions, Entry, nn.Module, Layout]:
        root = unwrap_model(self.model)
        model_layout = layout(root)
        operator = prepare_operator(self.operator, root, model_layout, strict=self._strict)
        substitutions = substitutions_of(root, model_layout)
        entry = Entry(
            substitutions.host,
            operator,
            lambda site: device_of(root, model_layout, site),
            self._prompt_length,
            self._on_error,
        )
        entry.selections = self._selections or entry.selections
        entry.generators = generators()
        shadows: Shadows = {
            "generate": functools.partial(_Generate, substitutions.host, root),
            "prepare_inputs_for_generation": functools.partial(_Prepare, substitutions.host),
        }
        shadows.update({name: functools.partial(_OutOfReach, substitutions.host, name) for name in OUT_OF_REACH})
        substitutions.open(root, model_layout, entry, shadows)
        return substitutions, entry, root, model_layout

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(quiet=kind is not None)

    def close(self, *, quiet: bool = False) -> None:
        """Stop steering: the model is bit for bit what it was. Contexts close in any order, from any thread.

        Args:
            quiet: do not warn about scopes that selected nothing.
        """
        if not self._open:
            return
        opened = self._open.pop()
        if opened is None:
            return
        substitutions, entry, root, model_layout = opened
        lost = [] if quiet else substitutions.lost(root, model_layout, entry)
        entry.closed = True
        active.set(tuple(e for e in active.get() if e is not entry))
        substitutions.close(entry)
        self.fallbacks += entry.fallbacks
        if not quiet:
            if lost:
                warn(
                    f"Inside the context another module, or another forward, took the place of {', '.join(lost[:8])}: "
                    "what ran there since was unsteered. Change a model before the context opens, and open it again "
                    "after a change."
                )
                entry.selections.sites.clear()  # why no pass met them is said
            warn_of_empty(entry.selections)
            if entry.passed_by and not entry.used:
                warn(
                    "A context that was opened inside a generator steered nothing, while the model ran elsewhere: what "
                    "runs inside the generator is steered, and what the generator hands control to only where it "
                    "runs in the same context (a web framework's dependency does not). Open the context where the "
                    "model is called."
                )
        entry.overflow.close()


def refuse_open_rows(model: Any, why: str) -> None:
    """Refuse to batch prompts inside a context that holds a number or an operator for each row of its own batch.

    Raises:
        DataError: the caller has such a context open on the model.
    """
    by_row = [entry for entry in active.get() if not entry.closed and entry.holds_rows]
    if not by_row:  # asked first: a model that nothing steers need not have a layout
        return
    root = unwrap_model(model)
    if any(entry.host is substitutions_of(root, layout(root)).host for entry in by_row):
        raise DataError(
            f"An open steering context holds a value for each row of a batch, but {why}, so rows would not be the ones "
            "that were meant; steer with one value for all rows, or pass the operator to sf.generate."
        )


def warn_of_empty(selections: Selections) -> None:
    """Warn about scopes that selected no token in all the forward passes of a steering, and sites that none met."""
    if missed := selections.unmet():
        warn(
            f"No forward pass met {', '.join(missed[:8])}, so nothing was steered there: {UNMET}; "
            "print(sf.layout(model)) says where the sites are."
        )
    for scope in selections.empty():
        warn(
            f"The scope {scope} selected no token in any forward pass, so its operator did nothing; check the "
            "positions against the length of the prompt (they count real tokens from 0)."
        )


class _Generate:
    """`model.generate` while a context is open: notes where the prompt ends for the calling thread."""

    def __init__(self, host: Host, model: nn.Module, method: Any) -> None:
        self.host, self.model, self.method = host, model, method
        self.threads = {thread.ident for thread in threading.enumerate()}

    def _began_inside(self) -> bool:
        """Whether the calling thread was started after the context opened, and not by `stream`, which knows its own."""
        thread = threading.current_thread()
        return thread.ident not in self.threads and thread.name != STREAM

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not entries_of(self.host):
            if kwargs.get("streamer") is not None and self._began_inside():
                warn(
                    f"Thread {threading.current_thread().name!r} was started inside a steering context and generates "
                    "unsteered, since a context steers only the thread that opened it; use sf.stream(...), start the "
                    "thread with contextvars.copy_context().run as its target, or open the context in the thread."
                )
            return self.method(*args, **kwargs)
        prompt = _prompt(self.host, self.model, args, kwargs)
        token, before = generation.set(prompt), self.host.prompt
        self.host.prompt = prompt
        try:
            return self.method(*args, **kwargs)
        finally:
            self.host.prompt = before
            generation.reset(token)


class _Prepare:
    """`model.prepare_inputs_for_generation` while a context is open: marks the next pass as the generation's own."""

    def __init__(self, host: Host, method: Any) -> None:
        self.host, self.method = host, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self.method(*args, **kwargs)
        prompt = generation.get()
        if prompt is not None and prompt.host is self.host and isinstance(inputs, Mapping):
            ids = args[0] if args else kwargs.get("input_ids")
            embedded = kwargs.get("inputs_embeds") if inputs.get("inputs_embeds") is not None else None
            prompt.prepare(ids if embedded is None else embedded, kwargs.get("attention_mask"), inputs)
        return inputs


OUT_OF_REACH = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
"""Continuous batching: prompts packed into one row, in a thread that no context of the caller's steers."""


class _OutOfReach:
    """A method of the model that would run unsteered in silence: refused where the calling thread steers."""

    def __init__(self, host: Host, name: str, method: Any) -> None:
        self.host, self.name, self.method = host, name, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        entries = entries_of(self.host)
        reason = (
            f"model.{self.name} (continuous batching) packs prompts into one row and runs in a thread of its own, "
            "where no steering reaches it; use model.generate or sf.generate inside the context, or call it outside."
        )
        if any(entry.on_error != "baseline" for entry in entries):
            raise SteerError(reason)
        for entry in entries:
            entry.fallbacks += 1
            log.error("steering was left out (fallback %d): %s", entry.fallbacks, reason)
        return self.method(*args, **kwargs)


def _prompt(host: Host, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
    """The prompts of a call of `generate`: how many, their length in tokens, and their padding mask."""
    candidates = [kwargs.get("inputs_embeds"), args[0] if args else None, kwargs.get("inputs"), kwargs.get("input_ids")]
    tokens = next((t for t in candidates if isinstance(t, Tensor)), None)
    mask = padding_mask(kwargs.get("attention_mask"))
    in_chunks, wary = _option("prefill_chunk_size", model, kwargs) is not None, reads_pads(model)
    if mask is None and tokens is not None and (in_chunks or wary):  # no single pass may show the whole mask
        mask = _inferred_mask(tokens, model, kwargs)
    if wary and mask is not None and not bool(mask.all()):
        warn(
            f"transformers lets {type(model).__name__} read the padding of a batch, steered or not, so padded rows "
            "give other tokens than alone; generate from prompts of one length, or use sf.generate, which takes the "
            "prompts of such a model one by one."
        )
    rows, length = (1, 1) if tokens is None else tokens.shape[:2]
    resumes = any(kwargs.get(name) is not None for name in CACHES)
    return Generation(host, entries_of(host), max(rows, 1), length, mask, resumes)


def _option(name: str, model: nn.Module, kwargs: dict[str, Any]) -> Any:
    """An option of `generate`, wherever it is given; None if nowhere."""
    configs = kwargs.get("generation_config"), getattr(model, "generation_config", None)
    values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), None)


def _inferred_mask(tokens: Tensor, model: nn.Module, kwargs: dict[str, Any]) -> Tensor | None:
    """The mask that transformers infers from pads where none is given."""
    pad, ends = _option("pad_token_id", model, kwargs), _option("eos_token_id", model, kwargs)
    if pad is None or tokens.ndim != 2 or int(pad) in (ends if isinstance(ends, (list, tuple)) else [ends]):
        return None
    return (tokens != pad).long()


@public
def steer(
    model: nn.Module,
    op: SteeringVector | Operator,
    alpha: Number | None = None,
    *,
    scope: Scope | None = None,
    prompt_length: int | Sequence[int] | Tensor | None = None,
    strict: bool | str = False,
    on_error: str = "raise",
) -> Steering:
    """Steer a model inside a `with` block, and give it back bit for bit.

    The blocks that the operator acts on get a forward that acts there while any context is open;
    only the thread or async task that opened the context is steered. Contexts nest, add up on a shared
    site, and close in any order. A model compiled with `torch.compile` is steered too, in every thread.

    Args:
        model: any transformers causal LM (also quantized, offloaded, compiled, PEFT-wrapped). Unchanged.
        op: an operator, or a vector, which means `add(vector, alpha)`.
        alpha: strength for a vector, in units of the vector (default 1): number, 0-d or `[batch]` tensor.
        scope: the tokens to act on, as `at(scope, op)` (default: all).
        prompt_length: in plain forward passes, how many real tokens of each row are prompt (int or
            `[batch]`); by default all. `generate` knows by itself.
        strict: True refuses vectors unless they were made from these very weights, "architecture" unless from a
            model of this architecture; by default another architecture warns. See `check_match`.
        on_error: "raise", or "baseline": where steering fails, log an error, count it in `.fallbacks`, and
            go on unsteered.

    Returns:
        A context manager, usable with `ExitStack`, with `.close()`.

    Raises:
        SteerError: on entry: wrong types or width, a site the model lacks, an unsupported model.

    Source: design after Turner et al. 2023 (activation addition) and Rimsky et al. 2024 (CAA).

    Example:
        >>> import torch, steerfn as sf
        >>> before = model(**inputs).logits
        >>> with sf.steer(model, v, alpha=2.0):
        ...     steered = model(**inputs).logits
        >>> torch.equal(steered, before), torch.equal(model(**inputs).logits, before)
        (False, True)
    """
    if on_error not in ("raise", "baseline"):
        raise SteerError(f"on_error is 'raise' or 'baseline', not {on_error!r}.")
    return Steering(model, as_steering(op, alpha, scope), on_error, prompt_length, strict)


def as_steering(op: Any, alpha: Any = None, scope: Scope | None = None) -> Operator:
    """An operator from an operator or a vector, a strength and a scope, as `steer` takes them."""
    if isinstance(op, SteeringVector):
        op = add(op, 1.0 if alpha is None else alpha)
    elif not isinstance(op, Operator):
        raise SteerError(
            f"steer takes a SteeringVector or an operator, not a {type(op).__name__}; load a vector with sf.load(path) "
            "or make one with sf.SteeringVector({sf.resid_post[12]: tensor})."
        )
    elif alpha is not None:
        raise SteerError(
            f"alpha={alpha} goes with a vector; an operator has its strength inside, as in sf.add(v, {alpha})."
        )
    return op if scope is None else at(scope, op)


def as_optional_steering(op: Any, alpha: Any = None) -> Operator | None:
    """An operator as `as_steering` makes it; None, for no steering, has no strength.

    Raises:
        DataError: a strength without a vector.
    """
    if op is None and alpha is not None:
        raise DataError(f"alpha={alpha!r:.80} is the strength of a vector, but no vector was passed; pass it as op.")
    return None if op is None else as_steering(op, alpha)
