"""A LlamaIndex LLM that is steered; see `docs/guides/agents.md`.

Needs the extra: `pip install -c constraints.txt -e ".[llamaindex]"`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from steerfn.integrations._chat import Answering, Request
from steerfn.integrations._chat_options import OPTIONS, ChatOptions
from steerfn.run import Reply
from steerfn.values import DataError, missing

try:
    from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic
    from llama_index.core.base.llms.types import (
        ChatMessage,
        ChatResponse,
        CompletionResponse,
        LLMMetadata,
        MessageRole,
        TextBlock,
        ToolCallBlock,
    )
    from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
    from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
    from llama_index.core.llms.function_calling import FunctionCallingLLM
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool
    from pydantic import Field, PrivateAttr, computed_field
except ImportError as error:
    raise ImportError(missing("LlamaIndex", "llamaindex", error)) from error


ROLES = {
    "user": "user",
    "assistant": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}


class SteeredLLM(FunctionCallingLLM):
    """A transformers causal LM as a LlamaIndex LLM, with steering as a parameter.

    `chat` writes messages with the tokenizer's chat template (or with `messages_to_prompt`, where that is given);
    `complete` takes its text as it is. Where the template knows tools, agents and `structured_predict` use them; a tool
    that must be called (`tool_required=True`) is called as its schema says, whatever steers the model. Everything from
    `steering` on may also be said by a call, for it alone: `llm.chat(messages, steering=op)`.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer.
        steering: an operator, a vector, or None for the plain model.
        alpha: strength of a vector (default 1); an operator has its own inside.
        max_new_tokens: tokens at most.
        temperature: 0 (default) takes the most probable token; above, tokens are sampled.
        top_p: the share of probability that is sampled from.
        seed: of the sampling; None draws one for each answer.
        stop: texts that end an answer, and are left out of it.
        generation_kwargs: settings of transformers' `generate` such as `repetition_penalty`; those of the model's own
            generation config hold unless they are named here.
        llamaindex: fields of LlamaIndex's `LLM`: `system_prompt`, `messages_to_prompt`, `callback_manager`, ...

    Raises:
        SteerError: an argument of the wrong kind, or a steering that does not fit the model; at a call, messages
            that the model cannot take (tools, images), a prompt that is too long, or an unknown argument.

    Example:
        >>> import steerfn as sf
        >>> from steerfn.integrations.llamaindex import SteeredLLM
        >>> llm = SteeredLLM(model, tokenizer, steering=v, alpha=2.0, max_new_tokens=8)
        >>> text = llm.complete("My day was").text
        >>> text == llm.complete("My day was", steering=None).text
        False
    """

    model: Any = Field(exclude=True, repr=False)
    tokenizer: Any = Field(exclude=True, repr=False)
    steering: Any = Field(default=None, exclude=True, repr=False)
    alpha: Any = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Any = None
    generation_kwargs: Any = None
    _answering: Answering = PrivateAttr()

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        steering: Any = None,
        alpha: Any = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        **llamaindex: Any,
    ) -> None:
        if unknown := sorted(set(llamaindex) - set(FunctionCallingLLM.model_fields)):
            raise DataError(f"SteeredLLM takes no {', '.join(unknown)}; it takes {', '.join(OPTIONS)}.")
        options = ChatOptions(steering, alpha, max_new_tokens, temperature, top_p, seed, stop, generation_kwargs)
        answering = Answering(model, tokenizer)
        answering.operator(options)
        fields = {name: getattr(options, name) for name in OPTIONS}
        super().__init__(model=model, tokenizer=tokenizer, **fields, **llamaindex)
        self._answering = answering

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serializes it."""
        return "SteeredLLM"

    @computed_field
    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines its answers, as JSON values, which LlamaIndex's pipelines hash to skip work."""
        return self._answering.identity(self._options({}))

    @property
    def metadata(self) -> LLMMetadata:
        """Sizes and names, for LlamaIndex."""
        return LLMMetadata(
            context_window=self._answering.longest or DEFAULT_CONTEXT_WINDOW,
            num_output=self.max_new_tokens,
            is_chat_model=bool(getattr(self.tokenizer, "chat_template", None)),
            is_function_calling_model=self._answering.calls_tools,
            model_name=self._answering.about["name"],
        )

    def _options(self, kwargs: dict[str, Any]) -> ChatOptions:
        return ChatOptions(**{name: getattr(self, name) for name in OPTIONS}).but(**kwargs)

    def _completing(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> Request:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return self._answering.request(self._answering.raw(prompt), self._options(kwargs))

    def _chatting(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Request:
        if self.messages_to_prompt is not None and self.messages_to_prompt is not generic:
            return self._completing(self.messages_to_prompt(messages), True, kwargs)
        options = self._options(kwargs)
        return self._answering.request(self._answering.chat(conversation(messages), options), options)

    def _response_info(self, request: Request) -> dict[str, Any]:
        """The finish reason, and the token counts where LlamaIndex's counters look for them."""
        return {"raw": {"finish_reason": request.finish_reason, "usage": request.usage}}

    def _answer(self, request: Request) -> Reply:
        self._answering.run([request])
        return request.whole()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The continuation of a text.

        Args:
            prompt: the text.
            formatted: it went through `completion_to_prompt` already.
            kwargs: what a call may say instead of the constructor.
        """
        request = self._completing(prompt, formatted, kwargs)
        return CompletionResponse(text=self._answer(request).content, **self._response_info(request))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Generator[CompletionResponse, None, None]:
        """The continuation of a text, piece by piece; see `complete`."""
        request = self._completing(prompt, formatted, kwargs)

        def pieces() -> Generator[CompletionResponse, None, None]:
            text = ""
            for part in self._answering.pieces(request):
                text += part.content
                yield CompletionResponse(text=text, delta=part.content)
            yield CompletionResponse(text=text, delta="", **self._response_info(request))

        return pieces()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages.

        Args:
            messages: of users, systems, assistants and tools.
            kwargs: what a call may say instead of the constructor.
        """
        request = self._chatting(messages, kwargs)
        return ChatResponse(message=_assistant_message(self._answer(request)), **self._response_info(request))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """The answer to messages, piece by piece; see `chat`."""
        request = self._chatting(messages, kwargs)

        def pieces() -> Generator[ChatResponse, None, None]:
            for part in self._answering.pieces(request):
                yield ChatResponse(message=_assistant_message(request.reader.reply), delta=part.content)
            last = _assistant_message(request.reader.reply)
            yield ChatResponse(message=last, delta="", **self._response_info(request))

        return pieces()

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of `chat` where LlamaIndex's agents and programs give it tools."""
        del verbose
        asked = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
        called = {
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": "required" if tool_required else tool_choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
        }
        return {"messages": [*(chat_history or ()), *([asked] if asked else ())], **(called if tools else {}), **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tools that an answer calls.

        Args:
            response: of `chat` with tools.
            error_on_no_tool_call: refuse an answer without a call.
            kwargs: LlamaIndex's; nothing here reads them.

        Raises:
            ValueError: an answer without a call, as LlamaIndex expects it of any LLM.
        """
        calls = _calls_of(response.message)
        if error_on_no_tool_call and not calls:
            raise ValueError(f"The answer calls no tool: {response.message.content!r:.200}")
        return [ToolSelection(tool_id=each, tool_name=name, tool_kwargs=kwargs) for each, name, kwargs in calls]

    # LlamaIndex's own asynchronous methods run the model in the event loop, which then does nothing else.

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Run `complete` without blocking the event loop."""
        return await asyncio.to_thread(self.complete, prompt, formatted, **kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Run `chat` without blocking the event loop."""
        return await asyncio.to_thread(self.chat, messages, **kwargs)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncGenerator[CompletionResponse, None]:
        """Run `stream_complete` without blocking the event loop."""
        return _iterate_in_threads(self.stream_complete(prompt, formatted, **kwargs))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """Run `stream_chat` without blocking the event loop."""
        return _iterate_in_threads(self.stream_chat(messages, **kwargs))


async def _iterate_in_threads(pieces: Generator[Any, None, None]) -> AsyncGenerator[Any, None]:
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        pieces.close()


def _assistant_message(reply: str | Reply) -> ChatMessage:
    reply = Reply(reply) if isinstance(reply, str) else reply
    calls = [
        ToolCallBlock(tool_call_id=call.identifier, tool_name=call.name, tool_kwargs=json.loads(call.arguments))
        for call in reply.calls
    ]
    text = [TextBlock(text=reply.content)] if reply.content or not calls else []
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*text, *calls])


def _calls_of(message: ChatMessage) -> list[tuple[str, str, dict[str, Any]]]:
    """Identifier, name and arguments of the calls of a message."""
    calls = []
    for block in message.blocks:
        if isinstance(block, ToolCallBlock):
            arguments = block.tool_kwargs
            arguments = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
            calls.append((block.tool_call_id or "", block.tool_name, arguments))
    return calls


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """LlamaIndex's messages as chat templates take them: role and content, tool calls and their results.

    Args:
        messages: messages of LlamaIndex, in their order.

    Raises:
        DataError: a role that is not known, or content that is not text.

    Example:
        >>> from llama_index.core.llms import ChatMessage
        >>> from steerfn.integrations.llamaindex import conversation
        >>> conversation([ChatMessage("Hello")])
        [{'role': 'user', 'content': 'Hello'}]
    """
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for i, message in enumerate(messages):
        role = ROLES.get(str(message.role.value))
        if role is None:
            raise DataError(
                f"messages[{i}] has role {message.role.value!r}, and this LLM takes those of users, systems, "
                "assistants and tools."
            )
        if message.additional_kwargs.get("tool_calls") and not _calls_of(message):
            raise DataError(f"messages[{i}] has tool calls of another LLM's form; write them as ToolCallBlock.")
        for block in message.blocks:
            if not isinstance(block, (TextBlock, ToolCallBlock)):
                raise DataError(
                    f"messages[{i}] has content of type {type(block).__name__}, and this LLM takes text only; leave it "
                    "out, or say it in words."
                )
        text = "".join(block.text for block in message.blocks if isinstance(block, TextBlock))
        turn: dict[str, Any] = {"role": role, "content": text}
        if calls := _calls_of(message):
            turn["tool_calls"] = [
                {"id": each, "type": "function", "function": {"name": name, "arguments": arguments}}
                for each, name, arguments in calls
            ]
            names |= {each: name for each, name, _ in calls}
        if role == "tool":
            each = str(message.additional_kwargs.get("tool_call_id", ""))
            turn |= {"tool_call_id": each, "name": message.additional_kwargs.get("name") or names.get(each, "")}
        turns.append(turn)
    return turns
