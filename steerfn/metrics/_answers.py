"""Texts after their prompts, as token ids: the way in which scores see them."""

from collections.abc import Sequence
from typing import Any

from steerfn._chat_template import Chat, checked_chat
from steerfn._errors import DataError
from steerfn._text import Text, as_texts, encode
from steerfn.metrics._paired import check_paired
from steerfn.scoring import Item, items_of


def answers_of(
    tokenizer: Any, texts: Sequence[str], prompts: Sequence[Text], chat: Chat
) -> list[tuple[tuple[int, ...], tuple[int, ...]] | None]:
    """The token ids of each prompt and of its text, tokenized as one; None where a text has no tokens of its own.

    That is so for an empty text, and for one whose first letters make up a token with all of its prompt.

    Raises:
        DataError: another number of prompts than texts, or prompts that cannot be encoded.
    """
    check_paired(texts, prompts=prompts)
    checked_chat(chat)
    if not texts:
        return []
    # What is wrong with a prompt is told; what a model wrote after it is taken as it is.
    encode(tokenizer, as_texts(prompts, "prompts"), chat)
    return [_answer(tokenizer, text, prompt, chat) for text, prompt in zip(texts, prompts, strict=True)]


def _answer(tokenizer: Any, text: str, prompt: Text, chat: Chat) -> Any:
    try:
        [item] = items_of(tokenizer, [prompt], [text], chat)
    except DataError:
        return None
    return item.prompt, item.continuations[0]


def sharing(
    answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], together: int
) -> list[tuple[Item, list[list[int]]]]:
    """Items in which texts of one prompt are scored together, and which answers each of their texts stands for.

    Args:
        answers: prompts and texts.
        together: tokens that the texts of an item have together at most. Or as many as the prompt has: each text sees
            none but its own, yet attention is computed to all.
    """
    by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for i, (prompt, text) in enumerate(answers):
        by_prompt.setdefault(prompt, {}).setdefault(text, []).append(i)
    found = []
    for prompt, whose in by_prompt.items():
        some: list[tuple[int, ...]] = []
        for text in whose:
            if some and sum(map(len, some)) + len(text) > max(together, len(prompt)):
                found.append((Item(prompt, tuple(some)), [whose[each] for each in some]))
                some = []
            some.append(text)
        found.append((Item(prompt, tuple(some)), [whose[each] for each in some]))
    return found
