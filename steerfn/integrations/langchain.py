"""A LangChain chat model that is steered: `pip install -c constraints.txt -e ".[langchain]"`. See `docs/agents.md`."""

import contextvars
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from steerfn._errors import DataError, SteerError
from steerfn._extra import missing
from steerfn.integrations._chat import OPTIONS, Answering, Options, Request
from steerfn.integrations._together import Seat, Together

try:
    from langchain_core.callbacks import CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.runnables import RunnableConfig
    from langchain_core.runnables.config import ContextThreadPoolExecutor, get_config_list, run_in_executor
    from pydantic import Field, PrivateAttr
except ImportError as error:
    raise ImportError(missing("LangChain", "langchain", error)) from error

ROLES = {"human": "user", "ai": "assistant", "system": "system"}
NAMED = {"developer": "system"}
"""Roles that a `ChatMessage` may name and templates do not know."""
FRAMEWORKS = ("stream", "stream_usage")
"""What LangChain itself may add to a call, and needs no answer here."""

_seat: contextvars.ContextVar[Seat | None] = contextvars.ContextVar("seat", default=None)


class SteeredChatModel(BaseChatModel):
    """A transformers causal LM as a LangChain chat model, with steering as a parameter.

    Everything from `steering` on may also be said by a call, for it alone: `chat.invoke(messages, steering=op)`,
    `chat.bind(steering=None)`. `batch` runs its inputs as rows of batches, those of like length together, and takes
    `steering=[...]` with one for each of them. Answers, streamed or not, alone or in a batch, are the same; caches tell
    steerings apart.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer, with a chat template.
        steering: an operator, a vector, or None for the plain model.
        alpha: strength of a vector (default 1); an operator has its own inside.
        max_new_tokens: tokens at most.
        temperature: 0 (default) takes the most probable token; above, tokens are sampled.
        top_p: the share of probability that is sampled from.
        seed: of the sampling; None draws one for each answer.
        stop: texts that end an answer, and are left out of it.
        generation_kwargs: settings of transformers' `generate` such as `repetition_penalty`; those of the model's own
            generation config hold unless they are named here.
        batch_size: inputs of `batch` that run at once; `max_concurrency` of the config may lower it.
        langchain: fields of LangChain's `BaseChatModel`: `cache`, `callbacks`, `rate_limiter`, `metadata`, ...

    Raises:
        SteerError: an argument of the wrong kind, or a steering that does not fit the model; at a call, messages
            that the model cannot take (tools, images), a prompt that is too long, or an unknown argument.

    Example:
        >>> import steerfn as sf
        >>> from steerfn.integrations.langchain import SteeredChatModel
        >>> chat = SteeredChatModel(model, tokenizer, steering=v, alpha=2.0)  # doctest: +SKIP
        >>> chat.invoke("How was your day?").content  # doctest: +SKIP
        >>> chat.batch(["How are you?"] * 2, steering=[sf.add(v, 3.0), None])  # doctest: +SKIP
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
    batch_size: int = 16
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
        batch_size: int = 16,
        **langchain: Any,
    ) -> None:
        if unknown := sorted(set(langchain) - set(BaseChatModel.model_fields)):
            raise DataError(f"SteeredChatModel takes no {', '.join(unknown)}; it takes {', '.join(OPTIONS)}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"batch_size is a number of inputs from 1, not {batch_size!r}.")
        options = Options(steering, alpha, max_new_tokens, temperature, top_p, seed, stop, generation_kwargs)
        answering = Answering(model, tokenizer)
        answering.operator(options)
        fields = {name: getattr(options, name) for name in OPTIONS}
        super().__init__(model=model, tokenizer=tokenizer, batch_size=batch_size, **fields, **langchain)  # pyright: ignore[reportCallIssue]
        self._answering = answering

    @property
    def _llm_type(self) -> str:
        return "steerfn"

    @property
    def model_name(self) -> str:
        """The model's name, where LangChain's agents look for it before they take `model` for one."""
        return self._answering.about["name"] or self._llm_type

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._answering.identity(self._options(None, {}))

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """What callbacks and traces are told: hashes in place of the operator that a call passes."""
        return {**self._answering.identity(self._options(stop, kwargs)), "_type": self._llm_type}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of caches. LangChain's own has the `repr` of arguments, which operators of other numbers share."""
        return json.dumps(self._get_invocation_params(stop, **kwargs), sort_keys=True, default=str)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        options = self._options(stop, kwargs)
        told = LangSmithParams(
            ls_provider="steerfn",
            ls_model_name=self.model_name,
            ls_model_type="chat",
            ls_temperature=options.temperature,
            ls_max_tokens=options.max_new_tokens,
        )
        if options.stops:
            told["ls_stop"] = list(options.stops)
        return told

    def _options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> Options:
        said = {name: value for name, value in kwargs.items() if name not in FRAMEWORKS}
        if stop is not None:
            said["stop"] = stop
        return Options(**{name: getattr(self, name) for name in OPTIONS}).but(**said)

    def _asked(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Request:
        options = self._options(stop, kwargs)
        return self._answering.request(self._answering.chat(conversation(messages)), options)

    def _told(self, request: Request) -> dict[str, Any]:
        return {"finish_reason": request.job.reason, "model_name": self.model_name}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        request, seat = self._asked(messages, stop, kwargs), _seat.get()
        if seat is not None and seat.take(self._answering):
            seat.together.ask(request)
        else:
            self._answering.run([request])
        request.check()
        message = AIMessage(content=request.text, usage_metadata=_usage(request))
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=self._told(request))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._asked(messages, stop, kwargs)
        for piece in self._answering.pieces(request):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        last = AIMessageChunk(content="", usage_metadata=_usage(request), chunk_position="last")
        yield ChatGenerationChunk(message=last, generation_info=self._told(request))

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer several inputs as rows of one batch.

        Args:
            inputs: prompts or conversations.
            config: LangChain's, one for all or one for each.
            return_exceptions: give exceptions back in the place of answers.
            kwargs: what a call may say; `steering` also as a list with one (or None) for each input.

        Raises:
            DataError: another number of steerings than inputs.
        """
        steering = kwargs.get("steering")
        said = [kwargs] * len(inputs)
        if isinstance(steering, (list, tuple)):
            if len(steering) != len(inputs):
                raise DataError(
                    f"There are {len(inputs)} inputs but {len(steering)} steerings; pass one for each (None for "
                    "unsteered), or a single one."
                )
            said = [{**kwargs, "steering": each} for each in steering]
        calls = list(zip(inputs, get_config_list(config, len(inputs)), said, strict=True))
        size = min([self.batch_size, *(n for _, each, _ in calls if (n := each.get("max_concurrency")))])
        found: list[Any] = []
        for start in range(0, len(calls), size):
            found += self._rows(calls[start : start + size], return_exceptions)
        return found

    def _rows(self, calls: list[tuple[Any, RunnableConfig, dict[str, Any]]], return_exceptions: bool) -> list[Any]:
        """Invoke in a thread each; what they generate runs together."""
        together = Together(len(calls), self._answering.run)

        def invoke(call: tuple[Any, RunnableConfig, dict[str, Any]]) -> Any:
            messages, config, kwargs = call
            seat = Seat(together, self._answering)
            _seat.set(seat)  # the thread's own context, which ends with it
            try:
                return self.invoke(messages, config, **kwargs)
            except Exception as error:
                if return_exceptions:
                    return error
                raise
            finally:
                seat.leave()

        with ContextThreadPoolExecutor(max_workers=len(calls)) as pool:
            return list(pool.map(invoke, calls))

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """As `batch`, without blocking the event loop."""
        return await run_in_executor(None, self.batch, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | Any],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> NoReturn:
        """Refuse, since models write tool calls in forms of their own.

        Raises:
            SteerError: always.
        """
        raise SteerError(
            f"SteeredChatModel reads no tool calls out of a model's text, so {len(tools)} tools cannot be bound; "
            "describe them in the system message and parse the answer, with an output parser for example."
        )

    def get_token_ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of a conversation as the model gets it, for `trim_messages` and the like."""
        if tools:
            self.bind_tools(tools)
        return len(self._answering.chat(conversation(messages)))


def conversation(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """LangChain's messages as role and content.

    Raises:
        DataError: a message of a tool, a tool call, or content that is no text.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> conversation([HumanMessage("Hello")])
        [{'role': 'user', 'content': 'Hello'}]
    """
    found = []
    for i, message in enumerate(messages):
        kind = type(message).__name__
        role = NAMED.get(message.role, message.role) if isinstance(message, ChatMessage) else ROLES.get(message.type)
        if isinstance(message, AIMessageChunk):
            role = "assistant"
        if role is None or getattr(message, "tool_calls", None):
            raise DataError(
                f"messages[{i}] is a {kind} with role {message.type!r}"
                f"{' and tool calls' if role else ''}, and this chat model takes text of users, systems and "
                "assistants only; write what the tool said into a HumanMessage."
            )
        content = [message.content] if isinstance(message.content, str) else message.content
        parts = [part if isinstance(part, str) else part.get("text") for part in content]
        for part, text in zip(content, parts, strict=True):
            if text is None or (isinstance(part, dict) and part.get("type", "text") != "text"):
                kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
                raise DataError(
                    f"messages[{i}] has content of type {kind!r}, and this chat model takes text only; leave it out, "
                    "or say it in words."
                )
        found.append({"role": role, "content": "".join(map(str, parts))})
    return found


def _usage(request: Request) -> UsageMetadata:
    told = request.usage
    return UsageMetadata(
        input_tokens=told["prompt_tokens"],
        output_tokens=told["completion_tokens"],
        total_tokens=told["total_tokens"],
    )
