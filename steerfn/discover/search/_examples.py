"""The examples of an optimisation: from what a user writes to token ids, and to a part to stop by."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from steerfn._chat_template import Chat, checked_chat
from steerfn._continuation import continued
from steerfn._errors import DataError
from steerfn._text import Text
from steerfn.discover.search._held_out import held_out as hold_out
from steerfn.discover.search._objective import Continuation, Examples, Preference


def examples_of(
    tokenizer: Any, promote: Any, suppress: Any, pairs: Any, chat: Chat
) -> tuple[Examples, dict[str, list[Text]]]:
    """The examples, and the prompt of each by kind."""
    checked_chat(chat)
    found: dict[str, tuple[Any, ...]] = {}
    prompts: dict[str, list[Text]] = {}
    for name, given, size, shape in (
        ("promote", promote, 2, "(prompt, continuation)"),
        ("suppress", suppress, 2, "(prompt, continuation)"),
        ("pairs", pairs, 3, "(prompt, preferred, rejected)"),
    ):
        items = [] if given is None else given
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise DataError(f"{name} is a list of {shape}, not {items!r:.80}.")
        for i, item in enumerate(items):
            if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != size:
                raise DataError(f"{name}[{i}] is {item!r:.80}; pass {shape}.")
        rows = [
            tuple(
                Continuation(tuple(ids), start)
                for each in following
                for ids, start in [continued(tokenizer, prompt, each, chat, f"{name}[{i}]")]
            )
            for i, (prompt, *following) in enumerate(items)
        ]
        for i, row in enumerate(rows):
            if size == 3 and row[0].ids == row[1].ids:
                raise DataError(f"pairs[{i}] prefers a continuation to itself; pass two that differ.")
        found[name] = tuple(Preference(row[0], row[1]) if size == 3 else row[0] for row in rows)
        prompts[name] = [prompt for prompt, *_ in items]
    examples = Examples(**found)
    if not len(examples):
        raise DataError(
            "There is nothing to optimise; pass promote=[(prompt, continuation)], suppress=[...] or "
            "pairs=[(prompt, preferred, rejected)]."
        )
    return examples, prompts


def divided(examples: Examples, prompts: dict[str, list[Text]], part: float, seed: int) -> tuple[Examples, Examples]:
    """Examples to learn from and to stop by, divided by prompt; a kind that cannot be divided is in both."""
    if part == 0:
        return examples, examples
    out = iter(hold_out([prompt for each in prompts.values() for prompt in each], part, seed))
    sides: dict[bool, dict[str, tuple[Any, ...]]] = {False: {}, True: {}}
    for field in dataclasses.fields(examples):
        items = getattr(examples, field.name)
        flags = [next(out) for _ in items]
        apart = any(flags) and not all(flags)
        for side, held in sides.items():
            held[field.name] = tuple(x for x, flag in zip(items, flags, strict=True) if flag is side or not apart)
    return Examples(**sides[False]), Examples(**sides[True])
