"""How much goes into one batch, and what happens where memory runs out."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from steerfn.values import positive_int

T = TypeVar("T")
R = TypeVar("R")

TOKENS = 1024, 16384
"""Tokens, padding included, that `batch_size="auto"` puts into one batch, on the CPU and elsewhere: what fills the
cores of a CPU and still fits their caches; other devices are wider."""


def limit_of(batch_size: Any) -> int | None:
    """The most that a batch may hold; None for "auto".

    Raises:
        DataError: neither "auto" nor a positive integer.
    """
    if isinstance(batch_size, str) and batch_size == "auto":
        return None
    return positive_int("batch_size", batch_size, hint="'auto' fits batches to the device")


@dataclasses.dataclass(frozen=True)
class Budget:
    """The size of a batch: as many items as the caller says, or as many as memory holds, found by halving.

    Attributes:
        limit: items of a batch; None for `size`.
        size: the cost of a batch: how many items there are times what the largest of them costs, such as its tokens.
    """

    limit: int | None
    size: int

    @classmethod
    def of(cls, batch_size: Any, device: torch.device, tokens: tuple[int, int] = TOKENS) -> "Budget":
        """The budget of a batch size, with the tokens of an automatic one on the CPU and on other devices.

        Raises:
            DataError: neither "auto" nor a positive integer.
        """
        return cls(limit_of(batch_size), tokens[device.type != "cpu"])

    def run(
        self,
        items: Sequence[T],
        step: Callable[[Sequence[T]], R],
        cost: Callable[[T], int] = lambda item: 1,
        together: Callable[[Sequence[T]], int] = len,
    ) -> Iterator[tuple[Sequence[T], R]]:
        """Take a step for each batch of consecutive items; where memory runs out, with half of the batch.

        Args:
            items: what to run, in descending order of cost.
            together: how many of a batch's items, from the first, can run at once, for other reasons than memory.

        Returns:
            Each batch with what its step returns, as it comes.

        Raises:
            torch.OutOfMemoryError: a batch of one item does not fit, or one of a given number of items.
        """
        start, size = 0, self.size
        while start < len(items):
            largest = cost(items[start])
            batch = items[start : start + (self.limit or max(1, size // largest))]
            batch = batch[: together(batch)]
            try:
                result = step(batch)
            except torch.OutOfMemoryError:
                if self.limit is not None or len(batch) == 1:
                    raise
                size = len(batch) * largest // 2
                continue
            start += len(batch)
            yield batch, result
