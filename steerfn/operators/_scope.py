"""Scopes: which tokens an operator acts on. Positions count real tokens, so padding never shifts them.

A block cannot know which tokens are prompt. Inside `generate` the prompt is what was passed to it; in
a plain forward pass everything passed is prompt. The logits of the first generated token come from the
last prompt position, so `generated` covers that position too.
"""

import abc
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn.operators._operator import Bound, Info, Operator, Tokens, as_operator
from steerfn.values import Hidden, Site, SteerError, TokenMask, plain_number, public, static, struct


class Scope(abc.ABC):
    """A pure predicate on token positions; combine with `|`, `&` and `~`.

    Example:
        >>> import steerfn as sf
        >>> sf.prompt & ~sf.last_prompt_token
        (prompt & ~last_prompt_token)
    """

    @abc.abstractmethod
    def mask(self, tokens: Tokens) -> TokenMask | None:
        """True where it selects, `[batch, seq]`; None where it selects every position."""

    # A scope holds no tensor and is structure: operators built from equal scopes have one pytree structure.
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __or__(self, other: "Scope") -> "Scope":
        return _Either(self, as_scope(other))

    def __and__(self, other: "Scope") -> "Scope":
        return _Both(self, as_scope(other))

    def __invert__(self) -> "Scope":
        return _Not(self)


def as_scope(value: Any) -> Scope:
    """A scope, or a clear refusal."""
    if isinstance(value, Scope):
        return value
    if callable(value):
        name = getattr(value, "__name__", "function")
        raise SteerError(f"A scope is needed, not the function {name} that makes one; call it, as in {name}(...).")
    raise SteerError(
        f"A scope is needed, not {value!r} of type {type(value).__name__}; use sf.everywhere, sf.prompt, sf.generated, "
        "sf.last_prompt_token or sf.positions(...), combined with | & ~."
    )


def _full(tokens: Tokens, mask: TokenMask | None) -> Tensor:
    return torch.ones_like(tokens.index, dtype=torch.bool) if mask is None else mask


@struct
class _Either(Scope):
    first: Scope = static()
    second: Scope = static()

    def mask(self, tokens: Tokens) -> TokenMask | None:
        first, second = self.first.mask(tokens), self.second.mask(tokens)
        return None if first is None or second is None else first | second

    def __repr__(self) -> str:
        return f"({self.first} | {self.second})"


@struct
class _Both(Scope):
    first: Scope = static()
    second: Scope = static()

    def mask(self, tokens: Tokens) -> TokenMask | None:
        first, second = self.first.mask(tokens), self.second.mask(tokens)
        if first is None or second is None:
            return second if first is None else first
        return first & second

    def __repr__(self) -> str:
        return f"({self.first} & {self.second})"


@struct
class _Not(Scope):
    inner: Scope = static()

    def mask(self, tokens: Tokens) -> TokenMask | None:
        return ~_full(tokens, self.inner.mask(tokens))

    def __repr__(self) -> str:
        return f"~{self.inner}"


@struct
class _Everywhere(Scope):
    def mask(self, tokens: Tokens) -> TokenMask | None:
        del tokens
        return None

    def __repr__(self) -> str:
        return "everywhere"


@struct
class _Prompt(Scope):
    def mask(self, tokens: Tokens) -> TokenMask | None:
        return tokens.index < tokens.prompt_length

    def __repr__(self) -> str:
        return "prompt"


@struct
class _Generated(Scope):
    def mask(self, tokens: Tokens) -> TokenMask | None:
        return tokens.generated_index >= 0

    def __repr__(self) -> str:
        return "generated"


@struct
class _LastPromptToken(Scope):
    def mask(self, tokens: Tokens) -> TokenMask | None:
        return tokens.generated_index == 0

    def __repr__(self) -> str:
        return "last_prompt_token"


@struct
class _Positions(Scope):
    indices: tuple[int | tuple[int | None, int | None, int], ...] = static()

    def mask(self, tokens: Tokens) -> TokenMask | None:
        index, length = tokens.index, tokens.prompt_length
        selected = torch.zeros_like(index, dtype=torch.bool)
        for item in self.indices:
            if isinstance(item, int):
                selected = selected | (index == (item if item >= 0 else length + item))
                continue
            start, stop, step = item
            low = 0 if start is None else start if start >= 0 else (length + start).clamp_min(0)
            inside = (index >= low) & ((index - low) % step == 0)
            if stop is not None:
                inside = inside & (index < (stop if stop >= 0 else length + stop))
            selected = selected | inside
        return selected

    def __repr__(self) -> str:
        def show(item: Any) -> str:
            return str(item) if isinstance(item, int) else f"slice{item}"

        return f"positions({', '.join(map(show, self.indices))})"


everywhere = _Everywhere()
"""Every real token (never padding)."""
prompt = _Prompt()
"""The tokens of the prompt, its last one included."""
generated = _Generated()
"""Every position whose logits give a generated token: the last prompt token and all after it."""
last_prompt_token = _LastPromptToken()
"""The last token of the prompt, the one whose logits give the first generated token."""


@public
def positions(*indices: int | slice) -> Scope:
    """The tokens at the given positions, counted over real tokens from the start of the row.

    Args:
        indices: ints or slices. Negative ones count from the end of the prompt: `-1` is its last token.
            A slice without an end goes on into the generated tokens.

    Raises:
        SteerError: no position, or something that is neither an int nor a slice with a positive step.

    Example:
        >>> import steerfn as sf
        >>> sf.positions(0, -1) | sf.positions(slice(4, 8))
        (positions(0, -1) | positions(slice(4, 8, 1)))
    """
    if len(indices) == 1 and isinstance(indices[0], (list, tuple, range, np.ndarray)):
        indices = tuple(indices[0])
    indices = tuple(plain_number(item) for item in indices)
    if not indices:
        raise SteerError("positions needs at least one position, such as sf.positions(0) or sf.positions(slice(2, 5)).")
    parsed: list[Any] = []
    for item in indices:
        bounds = (item.start, item.stop, 1 if item.step is None else item.step) if isinstance(item, slice) else (item,)
        bounds = tuple(map(plain_number, bounds))
        if any(isinstance(b, bool) or not (b is None or isinstance(b, int)) for b in bounds) or bounds == (None,):
            raise SteerError(f"A position is an int or a slice of ints, not {item!r}.")
        if isinstance(item, slice) and bounds[-1] < 1:
            raise SteerError(f"The step of {item} is {item.step}; use a step of 1 or more.")
        parsed.append(bounds if isinstance(item, slice) else item)
    return _Positions(tuple(parsed))


@struct
class _Scoped:
    inner: Any
    scope: Any

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        mask = self.scope.mask(info.tokens)
        if info.selections is not None:
            info.selections.note(self.scope, mask, info.tokens)
        if mask is None:
            return self.inner(hidden, info)
        return torch.where(mask.unsqueeze(-1), self.inner(hidden, info), hidden)


@struct
class At(Operator):
    """See `at`."""

    scope: Scope = static()
    operator: Operator

    def bind(self, site: Site, device: Any = None) -> Bound | None:
        inner = self.operator.bind_at(site, device)
        return None if inner is None else _Scoped(inner=inner, scope=self.scope)

    def touched(self, tokens: Tokens) -> TokenMask:
        return _full(tokens, self.scope.mask(tokens)) & self.operator.touched(tokens)


@public
def at(scope: Scope, op: Operator) -> Operator:
    """Apply `op` to the tokens that `scope` selects: `h' = op(h)` there, `h' = h` (bit for bit) elsewhere.

    Args:
        scope: `everywhere`, `prompt`, `generated`, `last_prompt_token`, `positions(...)`,
            `outside_tool_calls(tokenizer)`, or a combination.
        op: any operator.

    Raises:
        SteerError: `scope` is not a scope, or `op` not an operator.

    Warns:
        SteerWarning: when a context closes, of a scope that selected no token in it.

    Example:
        >>> import torch, steerfn as sf
        >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(1)}), torch.zeros(1, 3, 1)
        >>> sf.at(sf.positions(1), sf.add(v))(h, sf.Info.of(h)).flatten()
        tensor([0., 1., 0.])
    """
    return At(as_scope(scope), as_operator(op))
