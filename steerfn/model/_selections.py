"""The reach of a steering so far: which scopes selected a token, which sites a forward pass has met."""

from typing import Any

import torch
from torch import Tensor

from steerfn.operators import Tokens
from steerfn.values import is_transformed


class Selections:
    """Records which scopes of one steering selected a token and which sites were met; never waits for the device.

    Attributes:
        sites: of each site that something acts at, by name, whether a forward pass has met it.
    """

    def __init__(self) -> None:
        self.sites: dict[str, bool] = {}
        self._selected: dict[int, tuple[Any, Any]] = {}  # by id: a scope, and whether it has, a bool or a 0-d tensor

    def note(self, scope: Any, mask: Tensor | None, tokens: Tokens) -> None:
        """Record whether a scope selected a real token in this forward pass."""
        before = self._selected.get(id(scope), (scope, False))[1]
        if before is True or torch.compiler.is_compiling() or (mask is not None and is_transformed(mask)):
            return
        now: Any = True
        if mask is not None:
            now = (mask if tokens.real is None else mask & tokens.real).any()
            now = bool(now) if now.device.type == "cpu" else now | before
        self._selected[id(scope)] = (scope, now)

    def empty(self) -> list[Any]:
        """The scopes that were asked and never selected a token, nor did an equal one."""
        full = [scope for scope, selected in self._selected.values() if bool(selected)]
        return [scope for scope, selected in self._selected.values() if not bool(selected) and scope not in full]

    def unmet(self) -> list[str]:
        """The sites that no forward pass met, of those that have run to their end."""
        return [name for name, met in self.sites.items() if not met]
