"""The token ids of whole rows, cached ones included: what scopes of token ids are functions of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steerfn.values import SteerError, TokenMask

PAD = -1
"""Stands for the id of a padding token, whatever a tokenizer pads with."""

UNKNOWN = (
    "The scope {scope} is a function of all token ids of a row, and here some of them are not known. model.generate "
    "knows them where it is given whole rows as input_ids (no inputs_embeds, no cache of an earlier turn without its "
    "tokens). In forward passes of your own, run a row from its first token on inside the context: without a cache, or "
    "with one that nothing else fills, reorders or crops meanwhile. Where code is compiled, give generate the prompt "
    "in one piece. For a hidden state on its own pass sf.Info.of(hidden, token_ids=...)."
)


class RowIds:
    """The token ids of whole rows, and what scopes select among the tokens of one forward pass, the last of them.

    Each scope is asked once a pass, whatever the number of sites.

    Args:
        find: gives the ids, `[batch, past + seq]`, `PAD` at padding, or None where some are unknown.
        seq: tokens of the pass.
        device: where masks are needed.
        masks: what scopes select, by their keys, as far as it is known.
    """

    def __init__(self, find: Callable[[], Tensor | None], seq: int, device: Any, masks: dict[str, Tensor]) -> None:
        self.find, self.seq, self.device, self.masks = find, seq, device, masks

    @classmethod
    def of(cls, ids: Tensor, real: Tensor | None = None) -> "RowIds":
        """Rows that a pass holds from their first token on."""
        whole = without_padding(ids, real)
        return cls(lambda: whole, ids.shape[1], None, {})

    def mask(self, scope: Any) -> TokenMask:
        """True where a scope selects, `[batch, seq]`.

        Raises:
            SteerError: some of the ids are unknown.
        """
        mask = self.masks.get(scope.key)
        if mask is None or mask.shape[-1] != self.seq:
            ids = self.find()
            if ids is None:
                raise SteerError(UNKNOWN.format(scope=scope))
            mask = self.masks[scope.key] = scope.select(ids)[:, ids.shape[1] - self.seq :]
        return mask if self.device is None else mask.to(self.device)


class SomeRows:
    """Some rows of `RowIds`; `take` gives their entries of a tensor with one for each row."""

    def __init__(self, rows: Any, take: Callable[[Tensor], Tensor]) -> None:
        self.rows, self.take = rows, take

    def mask(self, scope: Any) -> TokenMask:
        """True where a scope selects in these rows."""
        return self.take(self.rows.mask(scope))


def without_padding(ids: Tensor, real: Tensor | None) -> Tensor:
    """Token ids with `PAD` at padding."""
    return ids if real is None else torch.where(real.to(ids.device).bool(), ids, PAD)
