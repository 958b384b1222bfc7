"""Operators: pure functions of a hidden state, built from immutable values.

`bind` does once what does not depend on the hidden state (moving a direction, scaling it, taking its
unit), so that the hot path only does arithmetic; calling an operator is binding and applying it.

`Info` is what an operator may know besides the hidden state: where it is, and which token each position holds.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from steerfn.operators._row_ids import RowIds
from steerfn.values import (
    Hidden,
    ShapeError,
    Site,
    SteerError,
    SteeringVector,
    TokenIndex,
    TokenMask,
    as_sites,
    children,
    has_values,
    is_struct,
    map_children,
    replace,
    resid_post,
    resolve_sites,
    static,
    struct,
)


@struct
class Tokens:
    """Which token each position of one forward pass holds; every position counts real tokens only.

    Attributes:
        index: 0-based index of each position among its row's real tokens (cached ones included).
        prompt_length: real tokens in each row's prompt, `[batch, 1]`.
        real: False at padding; None where every position is real.
        copies: consecutive rows that hold one prompt (beams, `num_return_sequences`).
        ids: the token ids, `[batch, seq]`; None where they are not known (embeddings are passed).
        row: the token ids of whole rows, cached ones included, as scopes of token ids ask for them (`_row_ids.RowIds`);
            None where no one knows them.

    Example:
        >>> import torch
        >>> from steerfn.operators import Tokens
        >>> Tokens.plain(1, 4, attention_mask=torch.tensor([[0, 1, 1, 1]])).index  # padded on the left
        tensor([[-1,  0,  1,  2]])
    """

    index: TokenIndex
    prompt_length: Any
    real: TokenMask | None
    copies: int = static(default=1)
    ids: Any = None
    row: Any = static(default=None)

    @property
    def generated_index(self) -> Tensor:
        """Index of the token that each position predicts: 0 at the last prompt token, negative before it."""
        return self.index - (self.prompt_length - 1)

    @classmethod
    def plain(cls, batch: int, seq: int, attention_mask: Tensor | None = None, **where: Any) -> "Tokens":
        """The tokens of a forward pass without a cache, in which everything passed is prompt."""
        if attention_mask is None:
            index = torch.arange(seq, **where).expand(batch, seq)
            return cls(index, torch.full((batch, 1), seq, **where), None)
        real = attention_mask.bool()
        index = real.long().cumsum(-1) - 1
        return cls(index, real.long().sum(-1, keepdim=True), real)


@struct
class Info:
    """The second argument of every operator.

    Attributes:
        site: the resolved site at which the hidden state was read.
        tokens: which token each position holds.
        reads: hidden states met at earlier sites of the same forward pass, for conditions that ask
            for them.
        selections: what scopes selected, recorded for the warning about scopes that select nothing.
        decisions: what conditions on the prompt decided before (`_on_prompt.Asking`); None where this hidden
            state is all there is.
    """

    site: Site = static()
    tokens: Tokens
    reads: Any = static(default=None)
    selections: Any = static(default=None)
    decisions: Any = static(default=None)

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        site: Site | None = None,
        *,
        prompt_length: int | Sequence[int] | Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_ids: Any = None,
    ) -> "Info":
        """The info of a stand-alone hidden state, for trying operators without a model.

        Args:
            hidden: `[batch, seq, width]`.
            site: where it is taken to come from (default `resid_post[0]`).
            prompt_length: real tokens of each row's prompt, an int or `[batch]`; default: all of them.
            attention_mask: `[batch, seq]`, 0 at padding.
            token_ids: `[batch, seq]`, for scopes that are functions of them.

        Raises:
            ShapeError: a mask or token ids of another shape, or prompt lengths for another number of rows.

        Example:
            >>> import torch, steerfn as sf
            >>> v, h = sf.SteeringVector({sf.resid_post[0]: torch.ones(4)}), torch.zeros(1, 2, 4)
            >>> sf.add(v, 2.0)(h, sf.Info.of(h)).sum()
            tensor(16.)
        """
        batch, seq = hidden.shape[0], hidden.shape[1]
        tokens = Tokens.plain(batch, seq, attention_mask, device=hidden.device)
        if tokens.index.shape != (batch, seq):
            raise ShapeError(
                f"The attention mask has shape {list(tokens.index.shape)}; pass one of shape {[batch, seq]}, as the "
                "hidden state has."
            )
        if prompt_length is not None:
            length = as_prompt_length(prompt_length).to(hidden.device).reshape(-1, 1)
            if length.shape[0] not in (1, batch):
                raise ShapeError(
                    f"There are {length.shape[0]} prompt lengths for {batch} rows; pass one, or one for each row."
                )
            tokens = Tokens(tokens.index, length.expand(batch, 1), tokens.real)
        if token_ids is not None:
            ids = torch.as_tensor(token_ids, device=hidden.device)
            if ids.shape != (batch, seq):
                raise ShapeError(
                    f"The token ids have shape {list(ids.shape)}; pass them in the shape {[batch, seq]}, as the hidden "
                    "state has."
                )
            tokens = replace(tokens, ids=ids, row=RowIds.of(ids, tokens.real))
        return cls(site=resid_post[0] if site is None else site, tokens=tokens)


def as_prompt_length(value: Any) -> Tensor:
    """How many real tokens of each row are prompt, as an integer tensor, 0-d or `[batch]`.

    Raises:
        ShapeError: neither a whole number from 0, nor a list or tensor of them.
    """
    try:
        length = torch.as_tensor(value).clone()  # what happens to the caller's tensor later does not reach it
    except (TypeError, ValueError, RuntimeError):
        length = None
    if length is None or length.is_floating_point() or length.is_complex() or length.dtype == torch.bool:
        raise ShapeError(f"prompt_length is a number of tokens, or one for each row, not {value!r:.80}.")
    if length.numel() == 0 or length.numel() != max((*length.shape, 1)):
        raise ShapeError(f"prompt_length has shape {list(length.shape)}; pass one int, or one for each row.")
    if has_values(length) and bool((length < 0).any()):
        raise ShapeError(f"prompt_length is {value!r:.80}; a prompt has 0 tokens or more.")
    return length


Bound = Callable[[Hidden, Info], Hidden]
"""An operator at one site, prepared: `(hidden, info) -> hidden`."""


HOW = (
    "Write for example: class Double(sf.Operator): sites = (sf.resid_post[12],); and in it "
    "def bind(self, site, device=None): return lambda hidden, info: 2 * hidden."
)


F = TypeVar("F", bound=Callable[[Any], Any])


def once(compute: F) -> F:
    """Keep what a method gives beside the fields that it is computed from, since a struct never changes.

    A plain object may change, so it computes anew. So does any object in code that `torch.compile` traces: one that has
    its answer and one that does not yet would be two graphs.
    """
    key = f"{compute.__name__} once"  # no attribute has a blank in its name

    @functools.wraps(compute)
    def answer(self: Any) -> Any:
        if torch.compiler.is_compiling() or not is_struct(self):
            return compute(self)
        known = vars(self)
        if key not in known:
            known[key] = compute(self)
        return known[key]

    return cast(F, answer)


class Steerable:
    """The base of operators and conditions: immutable, made of vectors, resolvable against a model."""

    by_row: ClassVar[tuple[str, ...]] = ()
    """The fields that hold one number, or one for each row of the batch."""

    @property
    @once
    def _parts(self) -> tuple[Any, ...]:
        """The vectors, operators and conditions it is made of."""
        return tuple(child for child in children(self) if isinstance(child, (SteeringVector, Steerable)))

    @property
    @once
    def vectors(self) -> tuple[SteeringVector, ...]:
        """Every steering vector in it."""
        return tuple(v for p in self._parts for v in ((p,) if isinstance(p, SteeringVector) else p.vectors))

    @property
    @once
    def sites(self) -> tuple[Site, ...]:
        """The sites it acts on: those of the vectors, operators and conditions that it is made of."""
        return sites_of(self._parts)

    @property
    @once
    def reads(self) -> tuple[Site, ...]:
        """The sites whose hidden state it needs besides the one it acts on."""
        return tuple(dict.fromkeys(s for p in self._parts if isinstance(p, Steerable) for s in p.reads))

    def resolve(self, n_layers: int) -> Any:
        """The same value with negative layers counted from 0."""
        return map_children(lambda c: c.resolve(n_layers) if isinstance(c, (SteeringVector, Steerable)) else c, self)


def sites_of(parts: tuple[Any, ...]) -> tuple[Site, ...]:
    """The sites of vectors, operators and conditions."""
    return tuple(dict.fromkeys(site for part in parts for site in part.sites))


def _check_call(function: Callable[..., Any], what: str, given: str, count: int) -> None:
    """Refuse a function of a subclass that cannot be called as it will be."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        raise SteerError(f"{what} is a function {inspect.signature(function)}, not one of {given}. {HOW}") from None


class Operator(Steerable):
    """A pure function `(hidden, info) -> hidden` at its sites, and the identity everywhere else.

    A subclass says where it acts, in `sites` or by the vectors that it holds as attributes, and what it does, in
    `bind`. The hidden state is `[batch, seq, width]`; the result has its shape, dtype and device; nothing is written
    in place.

    Raises:
        SteerError: a subclass without `bind`, or without a site.

    Example:
        >>> import torch, steerfn as sf
        >>> class Double(sf.Operator):
        ...     sites = (sf.resid_post[0],)
        ...
        ...     def bind(self, site, device=None):
        ...         return lambda hidden, info: 2 * hidden
        >>> h = torch.ones(1, 1, 2)
        >>> sf.at(sf.prompt, Double())(h, sf.Info.of(h))
        tensor([[[2., 2.]]])
    """

    _declared: tuple[Site, ...] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bind, sites = cls.__dict__.get("bind"), cls.__dict__.get("sites")
        if inspect.isfunction(bind):
            _check_call(bind, f"{cls.__name__}.bind", "itself, a site and a device", 3)
        if sites is not None and not hasattr(sites, "__get__") and "sites" not in inspect.get_annotations(cls):
            cls._declared = as_sites(sites)
            type.__delattr__(cls, "sites")

    @property
    @once
    def sites(self) -> tuple[Site, ...]:
        """The sites it acts on: those that its class or its maker declares, else those of its parts."""
        if self._declared is not None:
            return self._declared
        if not self._parts:
            raise SteerError(f"{type(self).__name__} acts at no site: it declares none and holds no vector. {HOW}")
        return sites_of(self._parts)

    def bind(self, site: Site, device: torch.device | str | None = None) -> Bound | None:
        """The operator prepared for one of its sites, resolved, or None where it is the identity."""
        del site, device
        if type(self).__call__ is Operator.__call__:
            raise SteerError(f"{type(self).__name__} does nothing: it has no `bind`. {HOW}")
        return self

    def bind_at(self, site: Site, device: torch.device | str | None = None) -> Bound | None:
        """The operator prepared for any resolved site: None where it does not act."""
        if not any(each.name == site.name for each in self.sites):
            return None
        bound = self.bind(site, device)
        if bound is not None and not callable(bound):
            raise SteerError(f"{type(self).__name__}.bind returned a {type(bound).__name__}, not a function. {HOW}")
        if inspect.isfunction(bound) and not torch.compiler.is_compiling():
            _check_call(bound, f"What {type(self).__name__}.bind returns", "a hidden state and its info", 2)
        return bound

    def resolve(self, n_layers: int) -> Any:
        """The same operator with negative layers counted from 0."""
        resolved = super().resolve(n_layers)
        if self._declared is not None:
            object.__setattr__(resolved, "sites", resolve_sites(self._declared, n_layers))
        return resolved

    def touched(self, tokens: Tokens) -> TokenMask:
        """The tokens that it may change, `[batch, seq]`: False is what it leaves alone whatever the state."""
        return torch.ones_like(tokens.index, dtype=torch.bool)

    def touched_by_parts(self, tokens: Tokens) -> TokenMask:
        """`touched` of an operator that changes only what the operators change of which it is made."""
        masks = [part.touched(tokens) for part in self._parts if isinstance(part, Operator)]
        return functools.reduce(torch.logical_or, masks, torch.zeros_like(tokens.index, dtype=torch.bool))

    def __call__(self, hidden: Hidden, info: Info) -> Hidden:
        """Apply to a hidden state `[batch, seq, width]`."""
        bound = self.bind_at(info.site, hidden.device)
        return hidden if bound is None else apply_step(bound, hidden, info)


def _declare_sites(operator: Operator, sites: Any) -> None:
    object.__setattr__(operator, "_declared", as_sites(sites))


# Set here, so that type checkers see a plain property, which subclasses may override, and `self.sites = ...` works too.
Operator.sites = Operator.sites.setter(_declare_sites)  # pyright: ignore


def apply_step(step: Bound, hidden: Hidden, info: Info) -> Hidden:
    """Apply a bound operator to a hidden state outside `torch.autocast`.

    Inside it matrix products run in half precision, whatever the dtype of what they multiply.
    """
    kind = hidden.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return step(hidden, info)
    with torch.autocast(kind, enabled=False):
        return step(hidden, info)


def as_operator(value: Any) -> Operator:
    """An operator, or a clear refusal."""
    if isinstance(value, Operator):
        return value
    raise SteerError(
        f"An operator is needed, not a {type(value).__name__}; wrap a vector as sf.add(v, alpha) or sf.ablate(v)."
    )


def as_vector(value: Any, where: str) -> SteeringVector:
    """A steering vector, or a clear refusal."""
    if isinstance(value, SteeringVector):
        return value
    raise SteerError(
        f"{where} takes a SteeringVector, not a {type(value).__name__}; make one with "
        "sf.SteeringVector({sf.resid_post[12]: tensor}) or load it with sf.load(path)."
    )


Make = Callable[[SteeringVector, float], Operator]
"""How a vector and a strength become an operator: `sf.add`, `sf.rotate`, a function of one's own."""
