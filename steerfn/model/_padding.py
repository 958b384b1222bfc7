"""Padding: masks of it, and models that transformers pads wrongly.

In a left-padded batch the rows of such a model are not what they are alone, steered or not.
"""

from typing import Any

import torch
from torch import Tensor

from steerfn.values import is_transformed

READ_PADS = frozenset({"rwkv", "recurrent_gemma", "minimax", "xlnet", "bart", "trocr", "paligemma"})
"""Model types whose state passes through the pads, or whose positions count them."""
READ_PADS_IN_4 = frozenset({"ctrl", "doge", "openai-gpt", "lfm2"})
"""Those that do so in transformers 4 only."""


def reads_pads(model: Any) -> bool:
    """Whether a row of a left-padded batch depends on its padding, by transformers' own doing."""
    import transformers

    known = READ_PADS | READ_PADS_IN_4 if transformers.__version__.startswith("4.") else READ_PADS
    config = getattr(model, "config", None)
    return getattr(config, "model_type", None) in known


def unless_all(real: Tensor) -> Tensor | None:
    """A mask, or None where it holds everywhere and asking costs no wait for an accelerator."""
    if torch.compiler.is_compiling() or real.device.type != "cpu" or is_transformed(real):
        return real
    return None if bool(real.all()) else real
