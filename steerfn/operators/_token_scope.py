"""Scopes that are functions of the token ids of a row, such as what lies between two marks.

Whether a position is selected depends on the ids of its row up to it, and on nothing else. Ids that a cache holds are
not in the forward pass; `Tokens.row` knows them, or says that they are unknown.

A new scope of this kind is a small file: a `Marks` for what opens and closes it, and a class that says what to do
with `Marks.between`.
"""

import abc
from typing import Any

from torch import Tensor

from steerfn.operators._operator import Steerable, Tokens
from steerfn.operators._row_ids import UNKNOWN
from steerfn.operators._scope import Scope
from steerfn.values import SteerError, TokenMask


class TokenScope(Scope):
    """A scope that is a pure function of the token ids of a row."""

    @property
    @abc.abstractmethod
    def key(self) -> str:
        """The same for scopes that select the same, and for no others."""

    @abc.abstractmethod
    def select(self, ids: Tensor) -> TokenMask:
        """True where it selects, given whole rows `[batch, n]`, `PAD` at padding; a column never asks a later one."""

    def mask(self, tokens: Tokens) -> TokenMask | None:
        if tokens.row is None:
            raise SteerError(UNKNOWN.format(scope=self))
        return tokens.row.mask(self)


def token_scopes(value: Any) -> tuple[TokenScope, ...]:
    """The scopes of token ids in an operator or a scope, each once."""
    if isinstance(value, TokenScope):
        return (value,)
    held = (each for name in vars(value).values() for each in (name if isinstance(name, tuple) else (name,)))
    parts = (part for part in held if isinstance(part, (Steerable, Scope)))
    return tuple({scope.key: scope for part in parts for scope in token_scopes(part)}.values())
