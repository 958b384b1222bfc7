"""Where generated texts end: at a token that ends them, or with a stop string."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.run._text import text_of

MARGIN = 64
"""Tokens to look back beyond a stop string's length: assisted decoding adds several at once."""


class End:
    """The end of texts, for a tokenizer.

    transformers' own `stop_strings` works with some kinds of tokenizers only, does not reach a `custom_generate`, and
    also reads the prompt; here a text ends as soon as what was generated contains a stop string, which stays in it.

    Args:
        tokenizer: the model's.
        tokens: the tokens that end a text.
        strings: the stop strings.
    """

    def __init__(self, tokenizer: Any, tokens: frozenset[int], strings: Sequence[str]) -> None:
        self.tokenizer, self.tokens, self.strings = tokenizer, tokens, tuple(strings)
        self.tail = MARGIN + max((len(each.encode()) for each in self.strings), default=0)

    def criteria(self, start: int, more: Sequence[Any] | None) -> Any:
        """The `stopping_criteria` of a generation whose new tokens begin at a column, with those of the user."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        end = self

        class StopAtText(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
                done = [end._has_stop(row) for row in input_ids[:, start:].tolist()]
                return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

        return StoppingCriteriaList([*([StopAtText()] if self.strings else []), *(more or ())])

    def cut(self, row: list[int]) -> list[int]:
        """The tokens of a text without what follows its end."""
        last = next((i for i, token in enumerate(row) if token in self.tokens), len(row) - 1)
        if self.strings:
            last = next((i for i in range(last) if self._has_stop(row[: i + 1])), last)
        return row[: last + 1]

    def _has_stop(self, row: list[int]) -> bool:
        text = text_of(self.tokenizer, row[-self.tail :])
        return any(string in text for string in self.strings)
