"""Rows of different lengths laid end to end in one: a forward pass as continuous batching runs it.

Operators know batches of rows. So a state `[1, tokens, width]` is laid out as `[rows, longest, width]` where something
acts, padded on the left, and back again.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from steerfn.operators import PAD, RowIds, Tokens

packing: contextvars.ContextVar["Packing | None"] = contextvars.ContextVar("steerfn_packing", default=None)


class Packing:
    """Where the tokens of one pass stand in their rows.

    Args:
        sizes: tokens of each row in the pass, in its order.
        ends: tokens of each row up to the end of the pass.
        prompt_lengths: how many of its tokens are its prompt.
        rows: gives the token ids of each row up to the end of the pass; called where a scope asks for them.
        device: of the pass.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        ends: Sequence[int],
        prompt_lengths: Sequence[int],
        rows: Callable[[], Sequence[Sequence[int]]],
        device: torch.device,
    ) -> None:
        self.shape = len(sizes), max(sizes)
        size, end, prompt = (torch.tensor(each, device=device)[:, None] for each in (sizes, ends, prompt_lengths))
        column = torch.arange(self.shape[1], device=device) - self.shape[1]
        real = None if min(sizes) == max(sizes) else column >= -size
        self.places = None if real is None else real.flatten().nonzero()[:, 0]
        ids = RowIds(lambda: _pad(rows()).to(device), self.shape[1], device, {})
        self.tokens = Tokens((end + column).clamp_min(0), prompt, real, row=ids)

    def unpack(self, packed: Tensor) -> Tensor:
        """The rows of a state `[1, tokens, width]`, `[rows, longest, width]`."""
        if self.places is None:
            return packed[0].unflatten(0, self.shape)
        flat = packed.new_zeros(self.shape[0] * self.shape[1], packed.shape[-1])
        return flat.index_copy(0, self.places.to(packed.device), packed[0]).unflatten(0, self.shape)

    def pack(self, rows: Tensor) -> Tensor:
        """Lay rows end to end again, `[1, tokens, width]`."""
        flat = rows.flatten(0, 1)
        return (flat if self.places is None else flat.index_select(0, self.places.to(rows.device))).unsqueeze(0)


@contextlib.contextmanager
def lay_end_to_end(value: Packing) -> Iterator[None]:
    """Forward passes inside hold rows that are laid end to end, as `value` says."""
    token = packing.set(value)
    try:
        yield
    finally:
        packing.reset(token)


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[PAD] * (longest - len(row)) + list(row) for row in rows])
