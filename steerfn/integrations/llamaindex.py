"""A LlamaIndex LLM that is steered: `pip install -c constraints.txt -e ".[llamaindex]"`. See `docs/agents.md`."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from steerfn._errors import DataError
from steerfn._extra import missing
from steerfn.integrations._chat import OPTIONS, Answering, Options, Request

try:
    from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic
    from llama_index.core.base.llms.types import (
        ChatMessage,
        ChatResponse,
        CompletionResponse,
        LLMMetadata,
        MessageRole,
        TextBlock,
    )
    from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
    from llama_index.core.llms import CustomLLM
    from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
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
}


class SteeredLLM(CustomLLM):
    """A transformers causal LM as a LlamaIndex LLM, with steering as a parameter.

    `chat` writes messages with the tokenizer's chat template (or with `messages_to_prompt`, where that is given);
    `complete` takes its text as it is. Everything from `steering` on may also be said by a call, for it alone:
    `llm.chat(messages, steering=op)`.

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
        >>> llm = SteeredLLM(model, tokenizer, steering=v, alpha=2.0)  # doctest: +SKIP
        >>> llm.complete("My day was", steering=sf.add(v, 3.0)).text  # doctest: +SKIP
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
        if unknown := sorted(set(llamaindex) - set(CustomLLM.model_fields)):
            raise DataError(f"SteeredLLM takes no {', '.join(unknown)}; it takes {', '.join(OPTIONS)}.")
        options = Options(steering, alpha, max_new_tokens, temperature, top_p, seed, stop, generation_kwargs)
        answering = Answering(model, tokenizer)
        answering.operator(options)
        fields = {name: getattr(options, name) for name in OPTIONS}
        super().__init__(model=model, tokenizer=tokenizer, **fields, **llamaindex)
        self._answering = answering

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex writes it down."""
        return "SteeredLLM"

    @computed_field
    @property
    def identity(self) -> dict[str, Any]:
        """What determines its answers, as JSON values: LlamaIndex's pipelines hash it to know what they have done."""
        return self._answering.identity(self._options({}))

    @property
    def metadata(self) -> LLMMetadata:
        """Sizes and names, for LlamaIndex."""
        return LLMMetadata(
            context_window=self._answering.longest or DEFAULT_CONTEXT_WINDOW,
            num_output=self.max_new_tokens,
            is_chat_model=bool(getattr(self.tokenizer, "chat_template", None)),
            model_name=self._answering.about["name"],
        )

    def _options(self, kwargs: dict[str, Any]) -> Options:
        return Options(**{name: getattr(self, name) for name in OPTIONS}).but(**kwargs)

    def _completing(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> Request:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return self._answering.request(self._answering.raw(prompt), self._options(kwargs))

    def _chatting(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Request:
        if self.messages_to_prompt is not None and self.messages_to_prompt is not generic:
            return self._completing(self.messages_to_prompt(messages), True, kwargs)
        return self._answering.request(self._answering.chat(conversation(messages)), self._options(kwargs))

    def _told(self, request: Request) -> dict[str, Any]:
        """What responses carry besides the text: what ended it, and tokens where LlamaIndex's counters look."""
        return {"raw": {"finish_reason": request.job.reason, "usage": request.usage}}

    def _answer(self, request: Request) -> str:
        self._answering.run([request])
        request.check()
        return request.text

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The continuation of a text.

        Args:
            prompt: the text.
            formatted: it went through `completion_to_prompt` already.
            kwargs: what a call may say instead of the constructor.
        """
        request = self._completing(prompt, formatted, kwargs)
        return CompletionResponse(text=self._answer(request), **self._told(request))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Generator[CompletionResponse, None, None]:
        """The continuation of a text, piece by piece; see `complete`."""
        request = self._completing(prompt, formatted, kwargs)

        def pieces() -> Generator[CompletionResponse, None, None]:
            text = ""
            for piece in self._answering.pieces(request):
                text += piece
                yield CompletionResponse(text=text, delta=piece)
            yield CompletionResponse(text=text, delta="", **self._told(request))

        return pieces()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages.

        Args:
            messages: of users, systems and assistants.
            kwargs: what a call may say instead of the constructor.
        """
        request = self._chatting(messages, kwargs)
        return ChatResponse(message=_said(self._answer(request)), **self._told(request))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """The answer to messages, piece by piece; see `chat`."""
        request = self._chatting(messages, kwargs)

        def pieces() -> Generator[ChatResponse, None, None]:
            text = ""
            for piece in self._answering.pieces(request):
                text += piece
                yield ChatResponse(message=_said(text), delta=piece)
            yield ChatResponse(message=_said(text), delta="", **self._told(request))

        return pieces()

    # LlamaIndex's own asynchronous methods run the model in the event loop, which then does nothing else.

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`, without blocking the event loop."""
        return await asyncio.to_thread(self.complete, prompt, formatted, **kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, without blocking the event loop."""
        return await asyncio.to_thread(self.chat, messages, **kwargs)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncGenerator[CompletionResponse, None]:
        """As `stream_complete`, without blocking the event loop."""
        return _unblocked(self.stream_complete(prompt, formatted, **kwargs))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """As `stream_chat`, without blocking the event loop."""
        return _unblocked(self.stream_chat(messages, **kwargs))


async def _unblocked(pieces: Generator[Any, None, None]) -> AsyncGenerator[Any, None]:
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        pieces.close()


def _said(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """LlamaIndex's messages as role and content.

    Raises:
        DataError: a message of a tool, a tool call, or content that is no text.

    Example:
        >>> from llama_index.core.llms import ChatMessage
        >>> conversation([ChatMessage("Hello")])
        [{'role': 'user', 'content': 'Hello'}]
    """
    found = []
    for i, message in enumerate(messages):
        role = ROLES.get(str(message.role.value))
        if role is None or message.additional_kwargs.get("tool_calls"):
            raise DataError(
                f"messages[{i}] has role {message.role.value!r}{' and tool calls' if role else ''}, and this LLM takes "
                "text of users, systems and assistants only; write what the tool said into a message of the user."
            )
        for block in message.blocks:
            if not isinstance(block, TextBlock):
                raise DataError(
                    f"messages[{i}] has content of type {type(block).__name__}, and this LLM takes text only; leave it "
                    "out, or say it in words."
                )
        found.append({"role": role, "content": "".join(block.text for block in message.blocks)})  # pyright: ignore[reportAttributeAccessIssue]
    return found
