"""Where tokens end in a text: what the tokens of two tokenizers have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.run._text import encode
from steerfn.values import DataError


def token_ends(tokenizer: Any, texts: Sequence[str]) -> list[tuple[tuple[int, ...], Mapping[int, int]]]:
    """Token ids of each text, as `encode` gives them, and the index of the token that ends at a character.

    A model that has read a token has read the text up to its end, whatever the tokens before it were. Where several end
    at one character, of which they are bytes, it is the last. Special tokens that are added end nowhere.

    Raises:
        DataError: a tokenizer that does not say where its tokens stand.

    Example:
        >>> import steerfn as sf
        >>> _, tokenizer = sf.demo_model()
        >>> [(_, ends)] = token_ends(tokenizer, ["Hello there"])
        >>> ends
        {5: 0, 11: 1}
    """
    rows = encode(tokenizer, texts, False)
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"A {type(tokenizer).__name__} does not say at which characters its tokens end, so they cannot be matched "
            "with those of another tokenizer; load the fast one (AutoTokenizer.from_pretrained gives it by default)."
        )
    spans = tokenizer(list(texts), return_offsets_mapping=True)["offset_mapping"]
    return [
        # `encode` drops the first of two beginnings of text
        (tuple(row), {end: i for i, (start, end) in enumerate(own[len(own) - len(row) :]) if end > start})
        for row, own in zip(rows, spans, strict=True)
    ]
