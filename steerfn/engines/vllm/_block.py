"""The forward that stands in place of a decoder block's, and the operator that compiled code calls."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from steerfn._errors import ModelError
from steerfn._forward import Host
from steerfn._interpose import Interposed
from steerfn._substitute import Shadow, around
from steerfn.engines.vllm._support import FAMILIES
from steerfn.engines.vllm._tables import Tables


class _Current:
    """The tables of the model that runs in this process: compiled code cannot hold them."""

    tables: Tables | None = None


def run(tables: Tables) -> None:
    """From now on the model with these tables runs."""
    _Current.tables = tables


class BlockForward(Interposed):
    """A block's forward, and the steering of what comes out of it."""

    def __init__(self, host: Any, original: nn.Module, *, tables: Tables, block: int) -> None:
        super().__init__(host, original)
        self.tables, self.block = tables, block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The two halves of the stream, steered."""
        hidden, residual = self.inner(*args, **kwargs)
        if torch.compiler.is_compiling():
            torch.ops.steerfn.steer_block(hidden, residual, self.block)
        else:
            self.tables.apply(hidden, residual, self.block)
        return hidden, residual


@functools.cache
def define() -> torch.library.Library:
    """Define the operator, once in a process; it lives as long as what is returned, which the cache keeps."""
    library = torch.library.Library("steerfn", "FRAGMENT")
    library.define("steer_block(Tensor(a!) hidden, Tensor residual, int block) -> ()")
    library.impl("steer_block", _steer_block, "CompositeExplicitAutograd")
    torch.library.register_fake("steerfn::steer_block", lambda hidden, residual, block: None, lib=library)
    return library


def _steer_block(hidden: Tensor, residual: Tensor, block: int) -> None:
    assert _Current.tables is not None
    _Current.tables.apply(hidden, residual, block)


def place(model: Any, architecture: str, n_layers: int, tables: Tables) -> None:
    """Put the steering forwards in place of those of the blocks that the tables have directions for.

    Raises:
        ModelError: the model's blocks are not the ones that are known.
    """
    blocks = getattr(getattr(model, "model", None), "layers", nn.ModuleList())
    found = {type(block).__name__ for block in blocks}
    if len(blocks) != n_layers or found != {FAMILIES[architecture]}:
        raise ModelError(
            f"vLLM's {architecture} is known with {n_layers} blocks of class {FAMILIES[architecture]} at model.layers, "
            f"and here there are {len(blocks)} of {sorted(found)}; "
            "start vLLM without STEERFN_VECTORS, or install the version of vLLM that docs/vllm.md names."
        )
    define()
    for block in tables.blocks:
        make = functools.partial(BlockForward, tables=tables, block=block)
        Shadow(blocks[block], "forward", functools.partial(around, module=blocks[block], makes=(make,), host=Host()))
    run(tables)
