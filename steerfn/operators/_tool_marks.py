"""The marks between which chat models write tool calls, as their tokenizers and chat templates tell them."""

import dataclasses
import json
import re
from typing import Any

from steerfn.values import DataError

FORMATS: dict[str, tuple[str, ...]] = {
    "hermes": ("<tool_call>", "</tool_call>"),  # Hermes, Qwen, SmolLM, GLM: one call between two marks
    "mistral": ("[TOOL_CALLS]",),  # to the end of the turn
    "llama": ("<|python_tag|>",),  # to the end of the turn or of the message
    "phi": ("<|tool_call|>", "<|/tool_call|>"),
    "granite": ("<|tool_call|>",),  # to the end of the turn
    "gemma": ("<|tool_call>", "<tool_call|>"),
    "function_gemma": ("<start_function_call>", "<end_function_call>"),
    "deepseek": ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    "kimi": ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    "internlm": ("<|action_start|>", "<|action_end|>"),
    "cohere": ("<|START_ACTION|>", "<|END_ACTION|>"),
    "jamba": ("<tool_calls>", "</tool_calls>"),
}
"""The marks of each format: the one that opens a call, and those that close it before its turn ends."""
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "</s>")
"""What ends a turn, in tokenizers that have it as one token; the tokenizer's own end-of-text token does so too."""


@dataclasses.dataclass(frozen=True)
class ToolMarks:
    """The marks of a tool call.

    Attributes:
        opens: the text that opens a call.
        closes: the texts that close it; none where a call ends with its turn.
        ends: tokens that end a turn, and with it a call that is still open.
        format: a key of `FORMATS`, "response_template" where the tokenizer says it by itself, "given" for a caller's.
    """

    opens: str
    closes: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    format: str = "given"


def tool_marks(tokenizer: Any, marks: Any = None) -> ToolMarks:
    """The marks of the tool calls that a model writes, by its tokenizer.

    The tokenizer's `response_template` (transformers 5.13 and later) decides where it names the marks, then the chat
    template where it writes all marks of a format that is known, then the tokenizer where they are tokens of its own.

    Args:
        tokenizer: of a chat model.
        marks: the mark that opens a call, and those that close it, where they are not known by themselves.

    Raises:
        DataError: marks that are not texts, or a tokenizer that knows of none.
    """
    own = str(getattr(tokenizer, "eos_token", ""))
    ends = tuple(end for end in dict.fromkeys((own, *ENDS)) if token_id(tokenizer, end) is not None)
    if marks is not None:
        if isinstance(marks, str) or not isinstance(marks, (tuple, list)) or not marks or not all(map(_is_text, marks)):
            raise DataError(
                f"marks is the text that opens a call and those that close it, such as ('<tool_call>', "
                f"'</tool_call>'), not {marks!r:.80}."
            )
        return ToolMarks(marks[0], tuple(marks[1:]), ends)
    calls = ((getattr(tokenizer, "response_template", None) or {}).get("fields") or {}).get("tool_calls") or {}
    opens, closes = (_texts(calls.get(name)) for name in ("open", "close"))
    if len(opens) == 1:
        return ToolMarks(opens[0], closes, ends, "response_template")
    patterns = " ".join(str(calls.get(name)) for name in ("open_pattern", "close", "close_pattern"))
    patterns = re.sub(r"\\(.)", r"\1", patterns)  # as they match
    template = json.dumps(getattr(tokenizer, "chat_template", None) or "", ensure_ascii=False)
    for has in (patterns.__contains__, template.__contains__, lambda mark: token_id(tokenizer, mark) is not None):
        for name, (mark, *others) in FORMATS.items():
            if has(mark) and all(map(has, others)):
                return ToolMarks(mark, tuple(others), ends, name)
    raise DataError(
        f"{type(tokenizer).__name__} knows of no tool calls: neither its response template, its chat template nor its "
        f"tokens hold {', '.join(' ... '.join(known) for known in FORMATS.values())}. Pass the text that opens a call "
        "and the text that closes it, as in marks=('<tool_call>', '</tool_call>')."
    )


def token_id(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is one token of a tokenizer; its whole vocabulary as a mapping would take long to make."""
    token = tokenizer.convert_tokens_to_ids(text)
    return token if isinstance(token, int) and tokenizer.convert_ids_to_tokens(token) == text else None


def _is_text(mark: Any) -> bool:
    return isinstance(mark, str) and bool(mark)


def _texts(value: Any) -> tuple[str, ...]:
    """The literal marks of a response template, which gives one or a list."""
    return tuple(filter(_is_text, value if isinstance(value, list) else [value]))
