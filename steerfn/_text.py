"""From texts to token ids, the same way everywhere: one BOS, templates where asked for, no tokenizer touched."""

import math
import operator
from collections.abc import KeysView, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from steerfn._chat_template import Chat, ChatTemplate
from steerfn._errors import DataError

Text = str | Sequence[Any]
"""A text, a conversation as `[{"role": "user", "content": "..."}]`, or token ids, which are taken as they are."""


def as_texts(texts: Any, what: str) -> list[Text]:
    """A list of texts, conversations or token ids from one or several, each of them non-empty.

    Raises:
        DataError: none at all, an empty one, a table, a mapping or set of texts, or something else.
    """
    if isinstance(texts, str) or _is_conversation(texts) or as_token_ids(texts) is not None:
        texts = [texts]
    found = [_as_text(text) for text in as_list(texts, what)]
    if not found:
        raise DataError(f"{what} is empty; pass at least one text.")
    for i, text in enumerate(found):
        if not isinstance(text, str) and not _is_conversation(text) and not is_token_ids(text):
            raise DataError(
                f"{what}[{i}] is {text!r:.80} of type {type(text).__name__}; pass a text, or a conversation "
                "as a list of messages with role and content, or the token ids of a text as ints."
            )
        if isinstance(text, str) and not text.strip():
            raise DataError(f"{what}[{i}] is empty ({text!r}); remove it or give it words.")
    return found


def _as_text(text: Any) -> Any:
    """A text as Python's own type: numpy and torch have theirs of texts and of token ids."""
    ids = as_token_ids(text)
    return ids if ids is not None else str(text) if isinstance(text, str) else text


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


def encode(tokenizer: Any, texts: Sequence[Text], chat: Chat, *, following: str = "") -> list[list[int]]:
    """Token ids of each text.

    Args:
        tokenizer: the model's. Nothing on it changes.
        texts: texts, conversations or token ids.
        chat: True puts each text into the chat template as the user's message, with the template's opening
            of the answer; None does so where the tokenizer has a template and the text is not laid out by it already;
            False takes texts as they are, with one beginning-of-text token where the tokenizer puts one; a mapping is
            True with switches of the template, such as `{"enable_thinking": False}`. Conversations always go through
            the template; one whose last message is the assistant's ends with it, an answer that was begun.
        following: what comes after each text, tokenized together with it; not after token ids.

    Raises:
        DataError: no tokenizer, a template that is needed but missing, a switch that it does not have, or a text
            without tokens.
    """
    check_tokenizer(tokenizer)
    for i, text in enumerate(texts):
        if not is_token_ids(text):
            _check_characters(text, f"Text {i}")
    _check_characters(following, "The continuation")
    template = ChatTemplate(tokenizer, chat)
    rows: list[list[int]] = [list(text) if is_token_ids(text) else [] for text in texts]
    written: dict[int, str] = {}  # by the template, special tokens included
    plain: dict[int, str] = {}
    for i, text in enumerate(texts):
        if is_token_ids(text):
            _refuse_padding(tokenizer, rows[i])
            continue
        by_template = template.write(text)
        if by_template is None:
            plain[i] = f"{text}{following}"
        else:
            written[i] = by_template + following
    start = getattr(tokenizer, "bos_token_id", None)
    for some, special in ((plain, True), (written, False)):
        if some:
            ids = tokenizer(list(some.values()), add_special_tokens=special)["input_ids"]
            for i, row in zip(some, ids, strict=True):
                twice = start is not None and list(row[:2]) == [start, start]  # written in the text as well
                rows[i] = list(row[1:] if twice else row)
    for i, row in enumerate(rows):
        if not row:
            raise DataError(f"Text {i} has no tokens: {texts[i]!r:.80}; give it words.")
    return rows


def _refuse_padding(tokenizer: Any, ids: Sequence[int]) -> None:
    """Token ids have no mask, so padding among them would be read as text."""
    pad = getattr(tokenizer, "pad_token_id", None)
    others = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk")]
    if pad is not None and pad not in others and pad in (ids[0], ids[-1]):
        raise DataError(
            f"Token ids {list(ids)!r:.60} begin or end with the padding token {pad}; pass each text without padding."
        )


def is_token_ids(text: Any) -> bool:
    """Whether something is a text as token ids: a tuple of ints, as `as_texts` makes it."""
    return isinstance(text, tuple) and len(text) > 0 and all(type(each) is int for each in text)


def as_token_ids(text: Any) -> tuple[int, ...] | None:
    """Token ids out of a list of ints, a 1-D tensor or an array of them; None for anything else.

    Raises:
        DataError: a negative id.
    """
    if isinstance(text, (str, Mapping)) or not hasattr(text, "__len__") or not len(text):
        return None
    ids = text.tolist() if hasattr(text, "tolist") and getattr(text, "ndim", 0) == 1 else text
    if not isinstance(ids, (list, tuple)) or any(isinstance(each, bool) for each in ids):
        return None
    try:
        found = tuple(operator.index(each) for each in ids)
    except TypeError:
        return None
    if min(found) < 0:
        raise DataError(f"Token ids are not negative, and {min(found)} is among {ids!r:.80}.")
    return found


def check_ids(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        DataError: there is one.
    """
    table = getattr(model, "get_input_embeddings", lambda: None)()
    size = getattr(table, "num_embeddings", None)  # not the weight's, of which a shard may be all that is here
    for i, row in enumerate(rows):
        if size is not None and max(row) >= size:
            raise DataError(
                f"Text {i} has the token id {max(row)}, and the model has embeddings for {size} tokens; pass ids of "
                "this model's own tokenizer."
            )


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer.

    Raises:
        DataError: it is a model, a processor, or something else.
    """
    if isinstance(tokenizer, torch.nn.Module):
        raise DataError(
            f"A {type(tokenizer).__name__}, which is a model, stands where the tokenizer goes; pass the model first "
            "and its tokenizer second."
        )
    if hasattr(getattr(tokenizer, "tokenizer", None), "apply_chat_template"):
        raise DataError(
            f"A {type(tokenizer).__name__} stands where the tokenizer goes; pass its tokenizer, processor.tokenizer."
        )
    if not hasattr(tokenizer, "apply_chat_template"):
        raise DataError(
            f"A transformers tokenizer is needed, not {tokenizer!r:.80} of type {type(tokenizer).__name__}."
        )


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
