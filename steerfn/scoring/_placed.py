"""An operator on the branches of a batch, as if each were a row of its own."""

from typing import Any

import torch
from torch import Tensor

from steerfn._site import Site
from steerfn._struct import replace, static, struct
from steerfn.operators import Info, Operator, Tokens


@struct
class Placed(Operator):
    """`operator` acts on gathered branches, and what it gives is put back.

    Attributes:
        operator: with a row for each branch.
        index: flat places of the branches' tokens, `[branches, longest]`; None where the branches are the rows.
        tokens: the branches' tokens.
    """

    operator: Operator
    index: Tensor | None = static()
    tokens: Tokens = static()

    @property
    def reads(self) -> tuple[Site, ...]:
        return self.operator.reads

    def bind(self, site: Site, device: Any = None) -> Any:
        inner = self.operator.bind_at(site, device)
        if inner is None:
            return None
        at = self.tokens
        index = None if self.index is None else self.index.to(device)
        real = None if at.real is None else at.real.to(device)
        tokens = Tokens(at.index.to(device), at.prompt_length.to(device), real)
        return _Placed(inner=inner, index=index, tokens=tokens)


@struct
class _Placed:
    inner: Any
    index: Any
    tokens: Any

    def __call__(self, hidden: Tensor, info: Info) -> Tensor:
        index, real = self.index, self.tokens.real
        if index is None:
            out = self.inner(hidden, replace(info, tokens=self.tokens))
            return out if real is None else torch.where(real.unsqueeze(-1), out, hidden)
        reads = None if info.reads is None else {site: _gathered(state, index) for site, state in info.reads.items()}
        out = self.inner(_gathered(hidden, index), replace(info, tokens=self.tokens, reads=reads))
        out, index = (out.flatten(0, 1), index.flatten()) if real is None else (out[real], index[real])
        return hidden.flatten(0, 1).index_copy(0, index, out).reshape(hidden.shape)


def _gathered(state: Tensor, index: Tensor) -> Tensor:
    return state.flatten(0, 1)[index]
