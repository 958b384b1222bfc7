"""A prompt and what follows it, as token ids: tokenized as a whole, as the model would meet it."""

from typing import Any

from steerfn._chat_template import Chat
from steerfn._errors import DataError
from steerfn._text import Text, as_texts, encode, is_token_ids
from steerfn.reading._positions import common_prefix


def continued(tokenizer: Any, prompt: Text, following: Any, chat: Chat, where: str) -> tuple[list[int], int]:
    """Token ids of a prompt and its continuation, and where the continuation begins.

    Args:
        tokenizer: the model's.
        prompt: a text, a conversation or token ids, to which those of the continuation are added.
        following: the text that follows it.
        chat: as in `encode`.
        where: what the error calls it.

    Raises:
        DataError: an empty prompt or continuation, or one whose tokens cannot be told from the prompt's.
    """
    if not isinstance(following, str) or not following:
        raise DataError(f"The continuation of {where} is {following!r:.80}; pass a text that is not empty.")
    [prompt] = as_texts([prompt], f"the prompt of {where}")
    [before] = encode(tokenizer, [prompt], chat)
    if is_token_ids(prompt):
        ids = [*before, *tokenizer(following, add_special_tokens=False)["input_ids"]]
    else:
        [ids] = encode(tokenizer, [prompt], chat, following=following)
    start = common_prefix(before, ids)
    if start == 0 or start == len(ids):
        raise DataError(
            f"The tokens of {where} cannot be divided into prompt and continuation ({prompt!r:.60} and "
            f"{following!r:.60}); begin the continuation with a space or a new line."
        )
    return list(ids), start
