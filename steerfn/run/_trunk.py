"""The trunk: the blocks below every operator, run once and repeated for all of them.

What an operator first touches splits a model: all before it is the same for every operator. `RecordBlocks` keeps what
blocks give in one pass; `ReplayBlocks` hands that on in later passes, in which those blocks do not run.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from steerfn.model import Layout, StopForward, hidden_of
from steerfn.operators import Operator
from steerfn.values import Site, resid_post


class RecordBlocks:
    """Notes what some blocks give, and ends the pass after the deepest.

    Attributes:
        states: the state after each block, `[rows, seq, d_model]`, by layer.
        bare: whether each gives the state alone, not in a tuple.
        alone: whether nothing but the state comes out of any block.
    """

    def __init__(self, layers: Iterable[int]) -> None:
        self.layers = sorted(layers)
        self.sites: tuple[Site, ...] = tuple(resid_post[i] for i in range(self.layers[-1] + 1))
        self.states: dict[int, Tensor] = {}
        self.bare: dict[int, bool] = {}
        self.alone = True

    def __call__(self, layer: int, hidden: Tensor, run: Callable[[], Any]) -> Any:
        out = run()
        self.bare[layer] = isinstance(out, Tensor)
        rest = out[1:] if type(out) in (tuple, list) else (out,)
        self.alone &= self.bare[layer] or all(each is None for each in rest)
        if layer in self.layers:
            self.states[layer] = hidden_of(out)
        if layer == self.layers[-1]:
            raise StopForward
        return out


class ReplayBlocks:
    """Hands on a noted state in place of the blocks up to a layer."""

    def __init__(self, noted: RecordBlocks, layer: int, rows: Tensor, columns: int) -> None:
        self.layer, self.bare = layer, noted.bare
        self.state = noted.states[layer][rows.to(noted.states[layer].device), :columns]
        self.sites = tuple(resid_post[i] for i in range(layer + 1))

    def __call__(self, layer: int, hidden: Tensor, run: Callable[[], Any]) -> Any:
        if layer > self.layer:
            return run()
        state = self.state if layer == self.layer else hidden
        return state if self.bare[layer] else (state,)


def trunk(op: Operator, at: Layout) -> int:
    """The last block whose own forward an operator with resolved sites leaves alone; -1 where there is none."""
    layers = [site.block if site.kind == "resid_post" else site.block - 1 for site in (*op.sites, *op.reads)]
    return min(layers, default=at.n_layers - 1)
