"""Tool calls out of the answers of a tokenizer's model, as they grow.

A tokenizer that says how its model's answers are read (transformers' response templates) is read so; for others the
chat template tells which of the known formats its model writes.
"""

import dataclasses
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.operators import token_id
from steerfn.run._chat_template import variables_of
from steerfn.run._tool_calls import Reply, as_call, format_of
from steerfn.values import DataError

LETTERS = string.ascii_letters + string.digits


class ToolReader:
    """Reads tool calls out of the answers of a tokenizer's model.

    Args:
        tokenizer: the model's.
        tools: functions, as OpenAI's API has them.

    Raises:
        DataError: its chat template knows no tools, or writes calls in a form that is not known.
    """

    def __init__(self, tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> None:
        self.tokenizer, self.tools = tokenizer, tools
        self.functions = [tool["function"] for tool in tools]
        self.names = [each["name"] for each in self.functions]
        read = variables_of(tokenizer, {"tools": list(tools)}) if getattr(tokenizer, "chat_template", None) else ()
        if read is not None and "tools" not in read:
            raise DataError(
                "The chat template of this tokenizer knows no tools, so the model would never hear of them; use a "
                "model that was trained to call tools, or set tokenizer.chat_template to a template that writes them."
            )
        self.by_template = getattr(tokenizer, "response_template", None) is not None
        self.format = format_of(tokenizer, str(tokenizer.get_chat_template(tools=list(tools))))
        if self.format is None and not self.by_template:
            raise DataError(
                "This model's chat template writes tool calls in a form that is not read here; the forms are those of "
                "Hermes and Qwen (<tool_call>), Mistral ([TOOL_CALLS]) and Llama 3, and those that the tokenizer's own "
                "response_template describes."
            )
        marks = (*((self.format.opens, self.format.closes) if self.format else ()), "[ARGS]", "[CALL_ID]")
        self.marks = {mark: token for mark in marks if (token := token_id(tokenizer, mark)) is not None}

    @property
    def mark_texts(self) -> dict[int, str]:
        """The special tokens that belong to the text of an answer, by their ids: without them calls are not seen."""
        if self.by_template:
            return {vocabulary_id: token for token, vocabulary_id in self.tokenizer.get_added_vocab().items()}
        return {token: mark for mark, token in self.marks.items()}

    def read(self, text: str, complete: bool, prompt: Sequence[int] = ()) -> Reply:
        """Take an answer apart; see `ToolFormat.read`.

        Args:
            text: the answer so far, with the tokens of `mark_texts`.
            complete: whether nothing more will come.
            prompt: the token ids before it, which may have its beginning; response templates read them.
        """
        if not self.by_template:
            assert self.format is not None
            return self.format.read(text, self.names, complete)
        if not complete:  # what a template makes of the beginning of an answer, the rest may change
            return Reply("")
        try:
            message = self.tokenizer.parse_response(text, prefix=list(prompt), tools=list(self.tools))
        except Exception:  # a template may fail in any way on what it does not describe: then it is no call
            return Reply(text)
        calls = [as_call(call.get("function", call)) for call in message.get("tool_calls") or ()]
        return Reply(message.get("content") or "", tuple(call for call in calls if call))

    def grammar(self, only: str | None = None, several: bool = True) -> str:
        """The grammar of an answer that calls the tools, or one of them, and says nothing else.

        Raises:
            DataError: the form of this model's calls is known to its response template only.
        """
        if self.format is None:
            raise DataError(
                "This model's tool calls are read by its response template, which cannot make it call one; leave "
                "tool_choice at 'auto'."
            )
        functions = [each for each in self.functions if only in (None, each["name"])]
        return self.format.grammar(functions, several and only is None, self.marks)


class ReplyReader:
    """One answer, read as it grows; its calls get their identifiers here.

    Args:
        tools: reads calls out of it; None where there are no tools.
        prompt: the token ids before it.
        several: whether it may have more than one call.
    """

    def __init__(self, tools: ToolReader | None, prompt: Sequence[int] = (), several: bool = True) -> None:
        self.tools, self.prompt, self.several = tools, prompt, several
        self.text = ""
        self.reply = Reply("")

    def add(self, piece: str | None) -> Reply:
        """Add a piece of the text, or (None) its end; returns what is new of the reply."""
        self.text += piece or ""
        before = self.reply
        after = Reply(self.text) if self.tools is None else self.tools.read(self.text, piece is None, self.prompt)
        new = after.calls[len(before.calls) :] if self.several else after.calls[len(before.calls) : 1]
        # Nine letters and digits, as Mistral's templates want them.
        new = tuple(
            dataclasses.replace(call, identifier="".join(secrets.choice(LETTERS) for _ in range(9))) for call in new
        )
        self.reply = Reply(after.content, before.calls + new)
        return Reply(after.content[len(before.content) :], new)
