"""The token ids of whole rows in one forward pass, of which the pass holds the last ones."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from steerfn.model._cached_rows import cached_rows, remember_rows
from steerfn.model._generation import Sequence, cache_in
from steerfn.operators import RowIds, without_padding


class PassRows:
    """The token ids of one forward pass, and those before them as far as they are known.

    They are known from `generate`, which holds whole rows; from the pass, where it begins with its rows; and from the
    pass that filled the cache.

    Args:
        ids: of the pass, `[batch, seq]`, if it is given any.
        cache, cached: the cache, if it is given one, and what it says of its length: 0 without a cache.
        prompt: what the pass goes on inside a running `generate`, if it runs inside one.
    """

    def __init__(
        self, ids: Tensor | None = None, cache: Any = None, cached: Any = 0, prompt: Sequence | None = None
    ) -> None:
        self.ids, self.cache, self.cached = ids, cache, cached
        self.whole, self.before = None, None
        self.masks: dict[str, Tensor] = {}
        if prompt is not None and prompt.masks:
            self.masks = prompt.masks
            if not torch.compiler.is_compiling():  # a graph must not know how long the rows are
                self.whole = prompt.row_ids

    def look_back(self) -> None:
        """Ask whether the ids of cached tokens are known: before the pass, which fills the cache."""
        if self.whole is None:
            self.before = cached_rows(self.cache)

    def ids_of(self, batch: int, seq: int) -> Tensor | None:
        """The token ids of a `[batch, seq, width]` state; None where the pass does not say."""
        return self.ids if self.ids is not None and self.ids.shape == (batch, seq) else None

    def row_ids(self, seq: int, device: torch.device, real: Callable[[], Tensor | None]) -> RowIds:
        """The rows as scopes of token ids ask them; `real` says which tokens of the pass are not padding."""
        return RowIds(lambda: self._find(real), seq, device, self.masks)

    def _find(self, real: Callable[[], Tensor | None]) -> Tensor | None:
        if self.whole is None and self.ids is not None:
            own = without_padding(self.ids, real())
            if self.before is not None and self.before.shape[0] == own.shape[0]:
                self.whole = torch.cat([self.before.to(own.device), own], 1)
            elif self.before is None and self._begins():
                self.whole = own
        return self.whole

    def _begins(self) -> bool:
        """Whether it is certain that the pass begins where its rows begin."""
        if isinstance(self.cached, Tensor):  # a static cache
            return not torch.compiler.is_compiling() and int(self.cached) == 0
        return self.cached == 0

    def remember(self, out: Any) -> None:
        """Remember whose tokens the cache of a pass holds that has given `out`."""
        if self.whole is not None:
            remember_rows(cache_in(out) if self.cache is None and isinstance(out, Mapping) else self.cache, self.whole)

    def close(self) -> None:
        """Let go of ids and cache; what scopes have selected stays for blocks that run again in backward."""
        self.ids = self.cache = self.whole = self.before = None
