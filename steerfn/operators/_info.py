"""What an operator may know besides the hidden state: where it is, and which token each position holds."""

from typing import Any

import torch
from torch import Tensor

from steerfn._errors import ShapeError
from steerfn._finite import has_values
from steerfn._site import Site, resid_post
from steerfn._struct import static, struct
from steerfn._types import TokenIndex, TokenMask


@struct
class Tokens:
    """Which token each position of one forward pass holds; every position counts real tokens only.

    Attributes:
        index: 0-based index of each position among its row's real tokens (cached ones included).
        prompt_length: real tokens in each row's prompt, `[batch, 1]`.
        real: False at padding; None where every position is real.
        copies: consecutive rows that hold one prompt (beams, `num_return_sequences`).
    """

    index: TokenIndex
    prompt_length: Any
    real: TokenMask | None
    copies: int = static(default=1)

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
        decisions: what conditions on the prompt decided before (`_prompt_condition.Asking`); None where this hidden
            state is all there is.
    """

    site: Site = static()
    tokens: Tokens
    reads: Any = static(default=None)
    selections: Any = static(default=None)
    decisions: Any = static(default=None)

    @classmethod
    def of(
        cls, hidden: Tensor, site: Site | None = None, *, prompt_length: Any = None, attention_mask: Any = None
    ) -> "Info":
        """The info of a stand-alone hidden state, for trying operators without a model.

        Args:
            hidden: `[batch, seq, width]`.
            site: where it is taken to come from (default `resid_post[0]`).
            prompt_length: real tokens of each row's prompt, an int or `[batch]`; default: all of them.
            attention_mask: `[batch, seq]`, 0 at padding.

        Raises:
            ShapeError: a mask of another shape, or prompt lengths for another number of rows.

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


def per_row(value: Tensor, hidden: Tensor, tokens: Tokens, what: str) -> Tensor:
    """A number, or one for each row of the batch, shaped to multiply `[batch, seq, width]`.

    Raises:
        ShapeError: as many values as there are neither rows nor prompts.
    """
    if value.ndim == 0:
        return value
    rows = value.shape[0]
    if rows * tokens.copies == hidden.shape[0] and tokens.copies > 1:
        value = value.repeat_interleave(tokens.copies, 0)
    elif rows != hidden.shape[0]:
        raise ShapeError(
            f"{what} has {rows} values, one for each row, but the batch has {hidden.shape[0]} rows; "
            "pass one number, or as many as there are rows."
        )
    return value.reshape(-1, *[1] * (hidden.ndim - 1))
