"""The answer to one request as it grows, in the form of OpenAI's API, whole or streamed."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from steerfn.run import BatchJob, ReplyReader, TokenLogprob, ToolCall, ToolReader


class Choice:
    """One text of an answer.

    Args:
        job: the row that makes it.
        chat: whether it is a message.
        tools: reads tool calls out of it; None where there are no tools.
        several: whether it may have more than one call.
        opening: what stands before it: the prompt that is echoed, or nothing.
        token_text: the text of a token.
    """

    def __init__(
        self,
        job: BatchJob,
        chat: bool,
        tools: ToolReader | None,
        several: bool,
        opening: str,
        token_text: Callable[[int], str],
    ) -> None:
        self.job, self.chat, self.opening, self.token_text = job, chat, opening, token_text
        self.reader = ReplyReader(tools, job.prompt, several)
        self._told, self._offset = 0, 0
        self._begun = False

    def whole(self) -> dict[str, Any]:
        """The finished text or message, with its log-probabilities."""
        reply = self.reader.reply
        content: dict[str, Any] = {"text": self.opening + reply.content}
        if self.chat:
            calls = [_call(each) for each in reply.calls]
            called = {"content": reply.content or None, "tool_calls": calls} if calls else {}
            content = {"message": {"role": "assistant", "content": reply.content, **called}}
        return {**content, "finish_reason": self._reason(), "logprobs": self._logprobs()}

    def part(self, piece: str | None) -> dict[str, Any] | None:
        """Add a piece of the text, or (None) its end; returns the part of a stream, or None where nothing is new."""
        new = self.reader.add(piece)
        if piece is not None and not new.content and not new.calls:
            return None
        first = len(self.reader.reply.calls) - len(new.calls)
        calls = [{"index": first + i, **_call(each)} for i, each in enumerate(new.calls)]
        delta = ({"content": new.content} if new.content else {}) | ({"tool_calls": calls} if calls else {})
        body = {"delta": delta} if self.chat else {"text": new.content}
        return {**body, "finish_reason": self._reason() if piece is None else None, "logprobs": self._logprobs()}

    def _reason(self) -> str:
        if self.job.reason == "length":
            return "length"
        return "tool_calls" if self.reader.reply.calls else "stop"

    def _logprobs(self) -> dict[str, Any] | None:
        """The log-probabilities of the tokens that came since they were last asked for."""
        if self.job.top_logprobs is None:
            return None
        start, self._told = self._told, min(len(self.job.tokens), len(self.job.logprobs))
        new = self.job.logprobs[start : self._told]
        if self.chat:
            return {"content": [self._entry(one) for one in new], "refusal": None}
        first: list[str] = []
        if self.job.of_prompt and not self._begun:
            first, new = [self.token_text(self.job.prompt[0])], self.job.prompt_logprobs + new
        self._begun = True
        tokens = first + [self.token_text(one.token) for one in new]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [None for _ in first] + [one.logprob for one in new],
            "top_logprobs": [None for _ in first] + [self._top(one) for one in new],
            "text_offset": offsets,
        }

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        """The most probable tokens and the one that came, by their texts; of two with one text the more probable."""
        pairs = sorted([*one.top, (one.token, one.logprob)], key=lambda pair: pair[1])
        return {self.token_text(token): logprob for token, logprob in pairs}

    def _entry(self, one: TokenLogprob) -> dict[str, Any]:
        def describe(token: int, logprob: float) -> dict[str, Any]:
            text = self.token_text(token)
            known = "\ufffd" not in text  # else it is a part of a character
            return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if known else None}

        return describe(one.token, one.logprob) | {"top_logprobs": [describe(*pair) for pair in one.top]}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.identifier, "type": "function", "function": function}


@dataclasses.dataclass
class Answer:
    """The answer to one request as it grows.

    Attributes:
        identifier: of the request.
        created: seconds since 1970.
        model: its name.
        choices: its texts.
        chat: whether it is a chat completion.
        prompt_tokens: of all prompts.
        steering: what it is steered by, each with its SHA-256 and whose policy it is; empty where by nothing.
    """

    identifier: str
    created: int
    model: str
    choices: Sequence[Choice]
    chat: bool
    prompt_tokens: int
    steering: Sequence[dict[str, Any]] = ()

    def add(self, index: int, piece: str | None) -> None:
        """Append a piece to a text that is told whole, or (None) end it."""
        self.choices[index].reader.add(piece)

    def usage(self) -> dict[str, int]:
        """The token counts so far."""
        made = sum(len(choice.job.tokens) for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    def whole(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        choices = [{"index": index, **choice.whole()} for index, choice in enumerate(self.choices)]
        return self._head("") | {"choices": choices, "usage": self.usage(), "steering": list(self.steering)}

    def openings(self) -> Iterator[dict[str, Any]]:
        """The first chunks of a stream: with the role of a message, or with the prompt that is echoed."""
        for index, choice in enumerate(self.choices):
            if not self.chat and not choice.opening:
                continue
            body = {"delta": {"role": "assistant", "content": ""}} if self.chat else {"text": choice.opening}
            part = {"index": index, **body, "finish_reason": None, "logprobs": None}
            yield self._head(".chunk") | {"choices": [part]}

    def part(self, index: int, piece: str | None) -> dict[str, Any] | None:
        """A piece of a text, or (None) its end; None where there is nothing to tell yet."""
        part = self.choices[index].part(piece)
        if part is None:
            return None
        steering = {"steering": list(self.steering)} if piece is None else {}
        return self._head(".chunk") | {"choices": [{"index": index, **part}]} | steering

    def usage_part(self) -> dict[str, Any]:
        """The last part, where it was asked for."""
        return self._head(".chunk") | {"choices": [], "usage": self.usage()}

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        return {"id": self.identifier, "object": kind, "created": self.created, "model": self.model}
