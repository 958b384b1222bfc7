"""What is scored: a prompt and the continuations that compete after it, as token ids."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from steerfn._chat_template import Chat, checked_chat
from steerfn._continuation import continued
from steerfn._errors import DataError
from steerfn._text import as_texts


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt and its continuations.

    Attributes:
        prompt: token ids up to where the first of the continuations begins to differ from the prompt alone.
        continuations: token ids of each, not empty.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


def items_of(tokenizer: Any, prompts: Any, continuations: Any, chat: Chat) -> list[Item]:
    """Items from texts.

    Args:
        tokenizer: the model's. Unchanged.
        prompts: texts or conversations.
        continuations: a list of texts for every prompt, or a list of such lists, one for each prompt.
        chat: as in `generate`.

    Raises:
        DataError: no prompts or continuations, an empty one, another number of lists than prompts, or a
            continuation whose tokens cannot be told from the prompt's.
    """
    checked_chat(chat)
    texts = as_texts(prompts, "prompts")
    return [
        _item([continued(tokenizer, text, each, chat, f"prompts[{i}]") for each in following])
        for i, (text, following) in enumerate(zip(texts, by_prompt(continuations, len(texts)), strict=True))
    ]


def by_prompt(continuations: Any, prompts: int) -> list[list[str]]:
    """The list of continuations of each prompt.

    Raises:
        DataError: no list, an empty one, or another number of lists than prompts.
    """
    if isinstance(continuations, str) or not isinstance(continuations, Sequence) or not len(continuations):
        raise DataError(
            f"continuations is a list of texts for every prompt, or one list for each, not {continuations!r:.80}."
        )
    if all(isinstance(each, str) for each in continuations):
        return [list(continuations)] * prompts
    if len(continuations) != prompts:
        raise DataError(
            f"There are {prompts} prompts but {len(continuations)} lists of continuations; pass one for each."
        )
    for i, each in enumerate(continuations):
        if isinstance(each, str) or not isinstance(each, Sequence) or not len(each):
            raise DataError(f"continuations[{i}] is {each!r:.80}; pass a list of texts that is not empty.")
    return [list(each) for each in continuations]


def _item(found: list[tuple[list[int], int]]) -> Item:
    """One item of whole texts and where each continuation begins: the earliest of these ends the prompt."""
    start = min(start for _, start in found)
    return Item(tuple(found[0][0][:start]), tuple(tuple(ids[start:]) for ids, _ in found))
