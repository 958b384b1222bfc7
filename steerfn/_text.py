"""From texts to token ids, the same way everywhere: one BOS, templates where asked for, no tokenizer touched."""

import math
from collections.abc import KeysView, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from steerfn._errors import DataError

Message = Mapping[str, str]
Text = str | Sequence[Message]
"""A text, or a conversation as `[{"role": "user", "content": "..."}]`."""


def as_texts(texts: Any, what: str) -> list[Text]:
    """A list of texts or conversations from one or several, each of them non-empty.

    Raises:
        DataError: none at all, an empty one, a table, a mapping or set of texts, or something else.
    """
    if isinstance(texts, str) or _is_conversation(texts):
        texts = [texts]
    found = [str(text) if isinstance(text, str) else text for text in as_list(texts, what)]  # numpy has its own
    if not found:
        raise DataError(f"{what} is empty; pass at least one text.")
    for i, text in enumerate(found):
        if not isinstance(text, str) and not _is_conversation(text):
            raise DataError(
                f"{what}[{i}] is {text!r:.80} of type {type(text).__name__}; pass a text, or a conversation as a "
                "list of messages with role and content."
            )
        if isinstance(text, str) and not text.strip():
            raise DataError(f"{what}[{i}] is empty ({text!r}); remove it or give it words.")
    return found


def as_list(texts: Any, what: str) -> list[Any]:
    """The members of a list of texts, whatever they are.

    Raises:
        DataError: what gives no texts when iterated: a table gives columns, a string letters, a set any order.
    """
    columns = next((getattr(texts, n) for n in ("columns", "column_names") if hasattr(texts, n)), None)
    if columns is not None:
        raise DataError(
            f"{what} is a table ({type(texts).__name__}) with the columns {list(columns)!r:.80}; pass the column that "
            "holds the texts, such as table['text']."
        )
    if isinstance(texts, (str, bytes, bytearray, Mapping, Set)) and not isinstance(texts, KeysView):
        raise DataError(
            f"{what} is a {type(texts).__name__}, which is no list of texts; pass a list, such as "
            f"{'list(texts.values())' if isinstance(texts, Mapping) else '[text, ...] in the order that is meant'}."
        )
    if not hasattr(texts, "__iter__"):
        raise DataError(f"{what} is a list of texts, not {texts!r:.80} of type {type(texts).__name__}.")
    return list(texts)


def _check_characters(text: Text, what: str) -> None:
    """Refuse half of a surrogate pair, as a text that was cut within a character has: no tokenizer can take it."""
    words = [text] if isinstance(text, str) else [message["content"] for message in text]
    for word in (word for word in words if isinstance(word, str)):
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{what} has half of a surrogate pair ({word[error.start]!r} at character {error.start}), which stands "
                "for no character; cut texts between characters, or write the whole one."
            ) from None


def _is_conversation(text: Any) -> bool:
    return (
        isinstance(text, Sequence)
        and not isinstance(text, str)
        and len(text) > 0
        and all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in text)
    )


def encode(tokenizer: Any, texts: Sequence[Text], chat: bool | None) -> list[list[int]]:
    """Token ids of each text.

    Args:
        tokenizer: the model's. Nothing on it changes.
        texts: texts or conversations.
        chat: True puts each text into the chat template as the user's message, with the template's opening
            of the answer; None does so where the tokenizer has a template; False takes texts as they are.
            Conversations always go through the template.

    Raises:
        DataError: no tokenizer, a template that is needed but missing, or a text without tokens.
    """
    if not hasattr(tokenizer, "apply_chat_template"):
        raise DataError(
            f"A transformers tokenizer is needed, not {tokenizer!r:.80} of type {type(tokenizer).__name__}."
        )
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat is None:
        chat = has_template
    for i, text in enumerate(texts):
        _check_characters(text, f"Text {i}")
    written: dict[int, str] = {}  # by the template, special tokens included
    for i, text in enumerate(texts):
        if chat or not isinstance(text, str):
            if not has_template:
                raise DataError(
                    "This tokenizer has no chat template; pass texts with chat=False, or set tokenizer.chat_template."
                )
            messages = [{"role": "user", "content": text}] if isinstance(text, str) else list(text)
            opening = messages[-1]["role"] != "assistant"
            written[i] = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opening)
    plain = {i: text for i, text in enumerate(texts) if i not in written}
    found: list[list[int]] = [[] for _ in texts]
    for some, special in ((plain, True), (written, False)):
        if some:
            ids = tokenizer(list(some.values()), add_special_tokens=special)["input_ids"]
            for i, row in zip(some, ids, strict=True):
                found[i] = list(row)
    for i, row in enumerate(found):
        if not row:
            raise DataError(f"Text {i} has no tokens: {texts[i]!r:.80}; give it words.")
    return found


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """What tokens say, without special tokens, as the model wrote it.

    Some tokenizers (Llama 3's) would tidy spaces ("do n't" to "don't"), which takes back text that was handed out.
    """
    return tokenizer.decode(ids, **AS_WRITTEN)


AS_WRITTEN = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
"""What transformers' `decode` is told."""


def padded(rows: Sequence[Sequence[int]], pad: int, side: str, device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, `[rows, longest]`, padded on one side."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids.to(device), mask.to(device)


def pad_id(model: Any, tokenizer: Any) -> int:
    """A token to pad with that the model can embed: the tokenizer's own, else its end of text, else 0.

    Padding is masked, so any token will do; a `[PAD]` that was added to the tokenizer alone would be out of range.
    """
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    rows = getattr(getattr(embeddings, "weight", None), "shape", (math.inf,))[0]
    for name in ("pad_token_id", "eos_token_id"):
        if isinstance(found := getattr(tokenizer, name, None), int) and 0 <= found < rows:
            return found
    return 0


def input_device(model: Any) -> torch.device:
    """Where a model takes its token ids."""
    found = getattr(model, "device", None)
    if isinstance(found, torch.device) and found.type != "meta":
        return found
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
