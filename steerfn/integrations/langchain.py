"""A LangChain chat model that is steered; see `docs/guides/agents.md`.

Needs the extra: `pip install -c constraints.txt -e ".[langchain]"`.

Calls in several threads run together, as the rows of one batch.
"""

import contextvars
import json
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, cast

from steerfn.integrations._chat import Answering, Request
from steerfn.integrations._chat_options import OPTIONS, ChatOptions
from steerfn.integrations._together import Seat, Together
from steerfn.values import DataError, missing, positive_int

try:
    from langchain_core.callbacks import CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, ToolMessage
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.messages.tool import tool_call, tool_call_chunk
    from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
    from langchain_core.runnables.config import ContextThreadPoolExecutor, get_config_list, run_in_executor
    from langchain_core.utils.function_calling import convert_to_openai_tool
    from pydantic import BaseModel, Field, PrivateAttr
except ImportError as error:
    raise ImportError(missing("LangChain", "langchain", error)) from error


ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "system": "system", "tool": "tool"}
NAMED = {"developer": "system"}
"""Roles that a `ChatMessage` may name and templates do not know."""
FRAMEWORKS = ("stream", "stream_usage", "ls_structured_output_format")
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
        >>> chat = SteeredChatModel(model, tokenizer, steering=v, alpha=2.0, max_new_tokens=4)
        >>> text = chat.invoke("How was your day?").content
        >>> steered, unsteered = chat.batch(["How are you?"] * 2, steering=[sf.add(v, 3.0), None])
        >>> steered.content == unsteered.content
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
        batch_size = positive_int("batch_size", batch_size)
        options = ChatOptions(steering, alpha, max_new_tokens, temperature, top_p, seed, stop, generation_kwargs)
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
        """The parameters that callbacks and traces record: hashes in place of the operator that a call passes."""
        return {**self._answering.identity(self._options(stop, kwargs)), "_type": self._llm_type}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of caches. LangChain's own has the `repr` of arguments, which operators of other numbers share."""
        return json.dumps(self._get_invocation_params(stop, **kwargs), sort_keys=True, default=str)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        options = self._options(stop, kwargs)
        parameters = LangSmithParams(
            ls_provider="steerfn",
            ls_model_name=self.model_name,
            ls_model_type="chat",
            ls_temperature=options.temperature,
            ls_max_tokens=options.max_new_tokens,
        )
        if options.stops:
            parameters["ls_stop"] = list(options.stops)
        return parameters

    def _options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> ChatOptions:
        options = {name: value for name, value in kwargs.items() if name not in FRAMEWORKS}
        if stop is not None:
            options["stop"] = stop
        return ChatOptions(**{name: getattr(self, name) for name in OPTIONS}).but(**options)

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Request:
        options = self._options(stop, kwargs)
        return self._answering.request(self._answering.chat(conversation(messages), options), options)

    def _generation_info(self, request: Request) -> dict[str, Any]:
        return {"finish_reason": request.finish_reason, "model_name": self.model_name}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        request, seat = self._request(messages, stop, kwargs), _seat.get()
        if seat is not None and seat.take(self._answering):
            seat.together.ask(request)
        else:
            self._answering.run([request])
        reply = request.whole()
        calls = [tool_call(name=call.name, args=json.loads(call.arguments), id=call.identifier) for call in reply.calls]
        message = AIMessage(content=reply.content, tool_calls=calls, usage_metadata=_usage(request))
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=self._generation_info(request))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        made = 0
        for part in self._answering.pieces(request):
            calls = [
                tool_call_chunk(name=call.name, args=call.arguments, id=call.identifier, index=made + i)
                for i, call in enumerate(part.calls)
            ]
            made += len(calls)
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=part.content, tool_call_chunks=calls))
            if run_manager is not None:
                run_manager.on_llm_new_token(part.content, chunk=chunk)
            yield chunk
        last = AIMessageChunk(content="", usage_metadata=_usage(request), chunk_position="last")
        yield ChatGenerationChunk(message=last, generation_info=self._generation_info(request))

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
        answers: list[Any] = []
        for start in range(0, len(calls), size):
            answers += self._rows(calls[start : start + size], return_exceptions)
        return answers

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
        """Run `batch` without blocking the event loop."""
        return await run_in_executor(None, self.batch, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | Any],
        *,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This chat model with tools that its answers may call.

        Args:
            tools: functions, LangChain's tools, pydantic models, or dicts as OpenAI's API has them.
            tool_choice: "auto" (default), "none", "any" or "required" (a valid call at any steering, through a
                grammar), or the name of the tool to call.
            parallel_tool_calls: whether one answer may have several calls.
            kwargs: what a call may say.

        Raises:
            SteerError: a chat template that knows no tools, or a `tool_choice` that names no tool.
        """
        strict = kwargs.pop("strict", None)
        bound = {
            "tools": [convert_to_openai_tool(tool, strict=strict) for tool in tools],
            "tool_choice": tool_choice,
            "parallel_tool_calls": parallel_tool_calls,
            **kwargs,
        }
        self._answering.tools(self._options(None, bound))  # fails where it is bound, not at the first call
        return self.bind(**bound)

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This chat model with answers that satisfy a schema, whatever steers it.

        Args:
            schema: a pydantic class, a TypedDict, or a JSON schema as a dict; None for "json_mode" alone.
            include_raw: answer with the message ("raw"), "parsed" and "parsing_error".
            method: "json_schema" (default) writes the JSON as the answer; "function_calling" calls a tool of that
                form, which needs a chat template that knows tools; "json_mode" writes any JSON object.
            strict: nothing more, since the schema is always enforced.
            kwargs: what a call may say.

        Raises:
            SteerError: another method, or a chat template that knows no tools.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        if method not in ("json_schema", "json_mode"):
            raise DataError(f"method must be 'json_schema', 'function_calling' or 'json_mode', got {method!r:.80}.")
        form: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            function = convert_to_openai_tool(schema, strict=strict)["function"]
            form = {"type": "json_schema", "json_schema": {"name": function["name"], "schema": function["parameters"]}}
        is_class = isinstance(schema, type) and issubclass(schema, BaseModel)
        parser = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
        model = self.bind(response_format=form, **kwargs)
        if not include_raw:
            return model | parser
        failed = {"parsed": lambda _: None, "parsing_error": lambda got: got["error"]}
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks(
            [RunnablePassthrough.assign(**failed) | (lambda got: {k: v for k, v in got.items() if k != "error"})],
            exception_key="error",
        )

    def get_token_ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of a conversation as the model gets it, for `trim_messages` and the like."""
        options = self._options(None, {"tools": [convert_to_openai_tool(tool) for tool in tools or ()]})
        return len(self._answering.chat(conversation(messages), options))


def conversation(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain's messages as chat templates take them: role and content, tool calls and their results.

    Args:
        messages: messages of LangChain, in their order.

    Raises:
        DataError: a role that is not known, or content that is not text.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> from steerfn.integrations.langchain import conversation
        >>> conversation([HumanMessage("Hello")])
        [{'role': 'user', 'content': 'Hello'}]
    """
    turns: list[dict[str, Any]] = []
    names: dict[str | None, str] = {}
    for i, message in enumerate(messages):
        role = NAMED.get(message.role, message.role) if isinstance(message, ChatMessage) else ROLES.get(message.type)
        if role is None:
            raise DataError(
                f"messages[{i}] is a {type(message).__name__} with role {message.type!r}, and this chat model takes "
                "those of users, systems, assistants and tools."
            )
        turn: dict[str, Any] = {"role": role, "content": _text(message, i)}
        if isinstance(message, AIMessage) and message.tool_calls:
            turn["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
                for call in message.tool_calls
            ]
            names |= {call["id"]: call["name"] for call in message.tool_calls}
        if isinstance(message, ToolMessage):
            name = message.name or names.get(message.tool_call_id, "")
            turn |= {"tool_call_id": message.tool_call_id, "name": name}
        turns.append(turn)
    return turns


def _text(message: BaseMessage, i: int) -> str:
    content = [message.content] if isinstance(message.content, str) else message.content
    texts = []
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        if kind == "tool_call" or kind == "tool_use":  # told by the message's tool_calls too
            continue
        text = part if isinstance(part, str) else part.get("text")
        if kind != "text" or text is None:
            raise DataError(
                f"messages[{i}] has content of type {kind!r}, and this chat model takes text only; leave it out, or "
                "say it in words."
            )
        texts.append(str(text))
    return "".join(texts)


def _usage(request: Request) -> UsageMetadata:
    usage = request.usage
    names = ("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"), ("total_tokens", "total_tokens")
    return cast(UsageMetadata, {ours: usage[theirs] for ours, theirs in names})
