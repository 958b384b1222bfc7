"""The types of arguments: any model, which may be wrapped, and a tokenizer, for which nothing need be imported."""

from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer: TypeAlias = PreTrainedTokenizerBase
else:
    Tokenizer: TypeAlias = Any
Model: TypeAlias = nn.Module
"""A causal language model of transformers, or what wraps one: PEFT, `nn.DataParallel`, a compiled model."""
