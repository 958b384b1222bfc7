"""Tokenizers that know tool calls: with marks that are tokens, and with marks that are written in pieces."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from words import words

OPEN, CLOSE, END = 31, 32, 33
"""The ids of `<tool_call>`, `</tool_call>` and `<|im_end|>` in `tool_words`."""


def tool_words() -> PreTrainedTokenizerFast:
    """`words`, a = 3, b = 4, ..., with the marks of a call and the end of a turn as tokens."""
    made = words(bos=False)
    made.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>", "<|im_end|>"]})
    assert made.convert_tokens_to_ids(["<tool_call>", "</tool_call>", "<|im_end|>"]) == [OPEN, CLOSE, END]
    return made


PIECES = (
    *"a<>/_tolc", "tool", "_call", "</", "<t", "ool_call", ">{", '"><', "</tool_", "call>", "<tool_call", "lo", " <",
    "<tool_calls>", "x</tool_call>y",
)  # fmt: skip
"""Texts of tokens that a mark may be cut into, with what may stand before or after it."""


def pieces(added: Sequence[str] = ("<|im_end|>", "<|call|>")) -> PreTrainedTokenizerFast:
    """A tokenizer of `PIECES`, the token of an id being `PIECES[id]`, and then of added tokens."""
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="a"))
    inner.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="a")
    made.add_special_tokens({"additional_special_tokens": list(added)})
    return made
