"""Activations with their text numbers: what methods are fed, and the state of those that keep them all."""

from typing import Any

import torch
from torch import Tensor

from steerfn._struct import struct


@struct
class Rows:
    """Activations at one site, one row for each text.

    Attributes:
        index: the number of each text on its side, `[n]`.
        values: `[n, width]`, float64.
    """

    index: Tensor
    values: Tensor

    @classmethod
    def empty(cls, width: int) -> "Rows":
        """No rows."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, width, dtype=torch.float64))

    def __len__(self) -> int:
        return self.index.shape[0]

    def __getitem__(self, chosen: Any) -> "Rows":
        return Rows(self.index[chosen], self.values[chosen])

    def joined(self, other: "Rows") -> "Rows":
        """The rows of both."""
        return Rows(torch.cat([self.index, other.index]), torch.cat([self.values, other.values]))

    def ordered(self) -> "Rows":
        """By text number, so that the order of reading leaves no trace."""
        return self[self.index.argsort()]


def matched(first: Rows, second: Rows) -> tuple[tuple[Rows, Rows], tuple[Rows, Rows]]:
    """The rows that have their counterpart, aligned by number; and those that wait for it."""
    here, there = torch.isin(first.index, second.index), torch.isin(second.index, first.index)
    return (first[here].ordered(), second[there].ordered()), (first[~here], second[~there])
