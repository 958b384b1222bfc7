"""From texts to token ids, the same way everywhere: one BOS, templates where asked for, no tokenizer touched.

A prompt and what follows it are tokenized as a whole, as the model would meet them.
"""

import itertools
import json
import math
import operator
from collections.abc import KeysView, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from steerfn.run._chat_template import Chat, ChatTemplate
from steerfn.values import DataError, check_tokenizer

Text = str | Sequence[Any]
"""A text, a conversation as `[{"role": "user", "content": "..."}]`, or token ids, which are taken as they are."""


def as_texts(texts: Any, what: str) -> list[Text]:
    """A list of texts, conversations or token ids from one or several, each of them non-empty.

    Raises:
        DataError: none at all, an empty one, a table, a mapping or set of texts, or something else.
    """
    if isinstance(texts, str) or _is_conversation(texts) or as_token_ids(texts) is not None:
        texts = [texts]
    listed = [_as_text(text) for text in as_list(texts, what)]
    if not listed:
        raise DataError(f"{what} is empty; pass at least one text.")
    for i, text in enumerate(listed):
        if not isinstance(text, str) and not _is_conversation(text) and not is_token_ids(text):
            raise DataError(
                f"{what}[{i}] is {text!r:.80} of type {type(text).__name__}; pass a text, or a conversation "
                "as a list of messages with role and content, or the token ids of a text as ints."
            )
        if isinstance(text, str) and not text.strip():
            raise DataError(f"{what}[{i}] is empty ({text!r}); remove it or give it words.")
    return listed


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
            f"{what} is a {type(texts).__name__}, which is not a list of texts; pass a list, such as "
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


def encode(
    tokenizer: Any, texts: Sequence[Text], chat: Chat, following: Sequence[str] | None = None
) -> list[list[int]]:
    """Token ids of each text.

    Args:
        tokenizer: the model's. Nothing on it changes.
        texts: texts, conversations or token ids.
        chat: True puts each text into the chat template as the user's message, with the template's opening
            of the answer; None does so where the tokenizer has a template and the text is not laid out by it already;
            False takes texts as they are, with one beginning-of-text token where the tokenizer puts one; a mapping is
            True with switches of the template, such as `{"enable_thinking": False}`. Conversations always go through
            the template; one whose last message is the assistant's ends with it, an answer that was begun.
        following: what comes after each text, tokenized together with it; after token ids, on its own.

    Raises:
        DataError: no tokenizer, a template that is needed but missing, a switch that it does not have, or a text
            without tokens.
    """
    check_tokenizer(tokenizer)
    after = [""] * len(texts) if following is None else following
    for i, text in enumerate(texts):
        if not is_token_ids(text):
            _check_characters(text, f"Text {i}")
        _check_characters(after[i], "The continuation")
    template = ChatTemplate(tokenizer, chat)
    rows: list[list[int]] = [list(text) if is_token_ids(text) else [] for text in texts]
    plain: dict[int, str] = {}  # which texts are written as they are,
    written: dict[int, str] = {}  # and which without a beginning of text: by the template, or after token ids
    for i, text in enumerate(texts):
        if is_token_ids(text):
            _refuse_padding(tokenizer, rows[i])
            if after[i]:
                written[i] = after[i]
            continue
        by_template = template.write(text)
        if by_template is None:
            plain[i] = f"{text}{after[i]}"
        else:
            written[i] = by_template + after[i]
    start = getattr(tokenizer, "bos_token_id", None)
    for some, special in ((plain, True), (written, False)):
        if some:
            words = list(dict.fromkeys(some.values()))
            ids = dict(zip(words, tokenizer(words, add_special_tokens=special)["input_ids"], strict=True))
            for i, row in ((i, ids[text]) for i, text in some.items()):
                twice = start is not None and list(row[:2]) == [start, start]  # written in the text as well
                rows[i] += row[1:] if twice else row
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
        token_ids = tuple(operator.index(each) for each in ids)
    except TypeError:
        return None
    if min(token_ids) < 0:
        raise DataError(f"Token ids must not be negative, but {min(token_ids)} is among {ids!r:.80}.")
    return token_ids


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


def text_of(tokenizer: Any, ids: Sequence[int], marks: Mapping[int, str] | None = None) -> str:
    """The text of some tokens, without special tokens, as the model wrote it.

    Some tokenizers (Llama 3's) would tidy spaces ("do n't" to "don't"), which takes back text that was handed out.

    Args:
        tokenizer: the model's.
        ids: the tokens.
        marks: special tokens that are part of the text all the same, with what they are written as.
    """
    if not marks or not any(token in marks for token in ids):
        return tokenizer.decode(ids, **AS_WRITTEN)
    words = itertools.groupby(ids, key=lambda token: token if token in marks else None)
    return "".join(
        marks[token] * len(list(some)) if token is not None else tokenizer.decode(list(some), **AS_WRITTEN)
        for token, some in words
    )


AS_WRITTEN = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
"""What transformers' `decode` is told."""


def pad_rows(rows: Sequence[Sequence[int]], pad: int, side: str, device: Any) -> tuple[Tensor, Tensor]:
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
        if isinstance(token := getattr(tokenizer, name, None), int) and 0 <= token < rows:
            return token
    return 0


def input_device(model: Any) -> torch.device:
    """Where a model takes its token ids."""
    device = getattr(model, "device", None)
    if isinstance(device, torch.device) and device.type != "meta":
        return device
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def encode_continuations(
    tokenizer: Any, prompts: Sequence[Text], following: Sequence[Sequence[Any]], chat: Chat, name: str
) -> list[list[tuple[list[int], int]]]:
    """Token ids of each prompt with each of its continuations, and where the continuation begins.

    Args:
        prompts: texts, conversations or token ids, to which those of the continuation are added.
        following: the texts that follow each prompt.
        name: what errors call the list of prompts.

    Raises:
        DataError: an empty prompt or continuation, or one whose tokens cannot be told from the prompt's.
    """
    for i, texts in enumerate(following):
        if wrong := [text for text in texts if not isinstance(text, str) or not text]:
            raise DataError(f"The continuation of {name}[{i}] is {wrong[0]!r:.80}; pass a text that is not empty.")
    prompts = [as_texts([prompt], f"the prompt of {name}[{i}]")[0] for i, prompt in enumerate(prompts)]
    flat = [(i, text) for i, texts in enumerate(following) for text in texts]
    encoded: list[list[tuple[list[int], int]]] = [[] for _ in prompts]
    whole = whole_texts(tokenizer, [prompts[i] for i, _ in flat], [text for _, text in flat], chat)
    for (i, text), (ids, start) in zip(flat, whole, strict=True):
        if not 0 < start < len(ids):
            raise DataError(
                f"The tokens of {name}[{i}] cannot be divided into prompt and continuation ({prompts[i]!r:.60} and "
                f"{text!r:.60}); begin the continuation with a space or a new line."
            )
        encoded[i].append((ids, start))
    return encoded


def whole_texts(
    tokenizer: Any, prompts: Sequence[Text], following: Sequence[str], chat: Chat
) -> list[tuple[list[int], int]]:
    """Token ids of each prompt with the text that follows it, and how many of them the prompt has on its own.

    None or all of the tokens are the prompt's where the two cannot be told apart. A prompt that occurs several times is
    tokenized on its own once.

    Raises:
        DataError: as `encode`.
    """
    distinct = {id(prompt): prompt for prompt in prompts}
    own = dict(zip(distinct, encode(tokenizer, list(distinct.values()), chat), strict=True))
    whole = encode(tokenizer, prompts, chat, following)
    return [(ids, common_prefix(own[id(prompt)], ids)) for prompt, ids in zip(prompts, whole, strict=True)]


def shown_prompt(prompt: Text) -> str:
    """A prompt for people, on one line: of a conversation who says what."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    if is_token_ids(prompt):
        return f"token ids {' '.join(map(str, prompt))}"
    return " / ".join(f"{message['role']}: {' '.join(str(message['content']).split())}" for message in prompt)


def prompt_field(prompt: Text) -> str:
    """A prompt in a record: a text as it is, a conversation or token ids as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(list(prompt))


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def same_text(text: Text) -> str:
    """A key that texts share which differ in case and white space only; of a conversation all messages count."""
    if is_token_ids(text):
        return " ".join(map(str, text))
    if not isinstance(text, str):
        text = "\n".join(f"{message['role']}: {message['content']}" for message in text)
    return " ".join(text.casefold().split())
