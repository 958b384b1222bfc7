"""What a steering has reached so far: which scopes selected a token, which sites a forward pass has met."""

from typing import Any

import torch
from torch import Tensor

from steerfn._finite import is_transformed
from steerfn.operators._info import Tokens


class Selections:
    """What the scopes of one steering have selected so far, without waiting for the device, and which sites were met.

    Attributes:
        sites: of each site that something acts at, by name, whether a forward pass has met it.
    """

    def __init__(self) -> None:
        self.sites: dict[str, bool] = {}
        self._seen: dict[int, tuple[Any, Any]] = {}

    def note(self, scope: Any, mask: Tensor | None, tokens: Tokens) -> None:
        """Record whether a scope selected a real token in this forward pass."""
        seen = self._seen.get(id(scope), (scope, False))[1]
        if seen is True or torch.compiler.is_compiling():
            return
        if mask is None:
            found: Any = True
        elif is_transformed(mask):
            return
        else:
            hit = (mask if tokens.real is None else mask & tokens.real).any()
            found = bool(hit) if hit.device.type == "cpu" else hit | seen
        self._seen[id(scope)] = (scope, found)

    def empty(self) -> list[Any]:
        """The scopes that were asked and never selected a token, nor did an equal one."""
        full = [scope for scope, found in self._seen.values() if bool(found)]
        return [scope for scope, found in self._seen.values() if not bool(found) and scope not in full]

    def unmet(self) -> list[str]:
        """The sites that no forward pass met, of those that have run to their end."""
        return [name for name, met in self.sites.items() if not met]
