"""The common part of the chat models for other frameworks: a model that answers, with a steering for every answer."""

import contextvars
import dataclasses
import hashlib
import queue
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from steerfn.integrations._chat_options import OF_CALLS, SETTINGS, ChatOptions
from steerfn.model import entries_of, layout, model_of, steering_identity, substitutions_of, unwrap_model
from steerfn.operators import Operator
from steerfn.run import (
    BatchJob,
    Decoding,
    Message,
    Reply,
    ReplyReader,
    RowSampling,
    Structure,
    ToolReader,
    compile_structure,
    decoding_of,
    encode,
    json_schema_grammar,
    like_lengths,
    run_batch,
    variables_of,
)
from steerfn.values import DataError, ModelError, SteerError
from steerfn.verbs import STREAM, as_steering, prepare_operator

NOTHING = Reply("")


class Request:
    """One answer to be generated: the row of a batch, and what has come of it so far.

    Args:
        prompt: token ids.
        op: its steering.
        options: all else.
        decoding: how the model decodes; its stop strings end the answer too.
        tools: reads tool calls out of it; None where there are no tools.
        structure: what it must keep to; None for nothing.
    """

    def __init__(
        self,
        prompt: list[int],
        op: Operator | None,
        options: ChatOptions,
        decoding: Decoding,
        tools: ToolReader | None = None,
        structure: Structure | None = None,
    ) -> None:
        self.decoding = decoding
        self.reader = ReplyReader(tools, prompt, options.parallel_tool_calls is not False)
        self.pieces: queue.Queue[str | None] = queue.Queue()
        self.job = BatchJob(
            prompt=prompt,
            op=op,
            max_tokens=options.max_new_tokens,
            sampling=RowSampling(
                temperature=float(options.temperature),
                top_p=float(options.top_p),
                seed=secrets.randbits(63) if options.seed is None else options.seed,
            ),
            stops=(*options.stops, *decoding.stop_strings),
            on_text=self.pieces.put,
            structure=structure,
            marks={} if tools is None else tools.mark_texts,
        )

    def whole(self) -> Reply:
        """The answer, once it has been generated.

        Raises:
            SteerError: an error ended it early.
        """
        self.check()
        for piece in (*iter(self.pieces.get, None), None):
            self.reader.add(piece)
        return self.reader.reply

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, as OpenAI's API names it."""
        calls = self.job.reason == "stop" and self.reader.reply.calls
        return "tool_calls" if calls else self.job.reason

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, of the answer, and in all."""
        prompt, answer = len(self.job.prompt), len(self.job.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def check(self) -> None:
        """Raise the error that ended the answer early, if one did.

        Raises:
            SteerError: the model's logits were not finite.
        """
        if self.job.error is not None:
            raise SteerError(str(self.job.error)) from self.job.error


class Answering:
    """A model and its tokenizer, answering from any thread.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.

    Raises:
        SteerError: no model or no tokenizer, or an architecture that cannot be steered.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if not hasattr(model, "generate") or not hasattr(model, "config"):
            raise ModelError(
                f"model is a transformers causal LM, not {model!r:.80} of type {type(model).__name__}; load one with "
                "sf.from_pretrained('org/name')."
            )
        if not hasattr(tokenizer, "apply_chat_template"):
            raise DataError(
                f"tokenizer is a transformers tokenizer, not {tokenizer!r:.80} of type {type(tokenizer).__name__}; "
                "sf.from_pretrained('org/name') returns it beside the model."
            )
        self.model, self.tokenizer = model, tokenizer
        self.root: Any = unwrap_model(model)
        self.layout = layout(self.root)
        self.decoding = decoding_of("steerfn", model, tokenizer, {})
        self.longest = getattr(self.root.config.get_text_config(), "max_position_embeddings", None)
        self.about = model_of(model)
        own = getattr(model, "generation_config", None)
        usual = None if own is None else type(own)()  # transformers 4 writes out what changes nothing
        self.own = {
            name: value
            for name in SETTINGS
            if (value := getattr(own, name, None)) is not None and value != getattr(usual, name, None)
        }

    def operator(self, options: ChatOptions) -> Operator | None:
        """The steering of an answer, checked against the model.

        Raises:
            SteerError: neither an operator nor a vector, or one that does not fit the model.
        """
        if options.steering is None:
            if options.alpha is not None:
                raise DataError(f"alpha={options.alpha!r} is the strength of a vector; pass steering=vector with it.")
            return None
        op = as_steering(options.steering, options.alpha)
        return prepare_operator(op, self.root, self.layout)

    def chat(self, messages: Sequence[Message], options: ChatOptions) -> list[int]:
        """The token ids of a conversation, through the tokenizer's chat template; an answer begun there is continued.

        Args:
            messages: the conversation.
            options: the call's, whose tools the template writes.

        Raises:
            DataError: no messages, no template, or one that refuses them.
        """
        if not messages:
            raise DataError("There are no messages to answer; pass at least one.")
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                "This tokenizer has no chat template, so it cannot write messages as one text; set "
                "tokenizer.chat_template, or use the tokenizer of an instruction-tuned model."
            )
        tools = self.tools(options)
        return encode(self.tokenizer, [list(messages)], None if tools is None else {"tools": tools.tools})[0]

    @property
    def calls_tools(self) -> bool:
        """Whether the chat template tells the model of tools."""
        template = getattr(self.tokenizer, "chat_template", None)
        return bool(template) and "tools" in (variables_of(self.tokenizer, {"tools": []}) or ())

    def tools(self, options: ChatOptions) -> ToolReader | None:
        """The reader of a call's tools; None where it has none, or forbids them.

        Raises:
            DataError: a chat template that knows no tools.
        """
        if not options.tools or options.tool_choice == "none":
            return None
        return ToolReader(self.tokenizer, list(options.tools))

    def structure(self, options: ChatOptions, tools: ToolReader | None) -> Structure | None:
        """The structure that an answer must keep to, if any.

        Raises:
            SteerError: a structure that cannot be enforced, or two of them.
        """
        grammars = []
        if tools is not None and options.tool_choice not in (None, "auto"):
            only = None if options.tool_choice == "required" else options.tool_choice
            grammars.append(tools.grammar(only, options.parallel_tool_calls is not False))
        form = options.response_format or {}
        if form.get("type") in ("json_object", "json_schema"):
            schema = form["json_schema"]["schema"] if form["type"] == "json_schema" else {"type": "object"}
            grammars.append(json_schema_grammar(schema))
            if tools is not None:
                raise DataError("response_format and tools ask for different answers; pass one of them.")
        return compile_structure(self.tokenizer, grammars[0], self.decoding.ends) if grammars else None

    def raw(self, text: str) -> list[int]:
        """The token ids of a text as it is, with one beginning-of-text token, whether or not the text has it written.

        Raises:
            DataError: a text without tokens.
        """
        return encode(self.tokenizer, [text], False)[0]

    def request(self, prompt: list[int], options: ChatOptions) -> Request:
        """A request.

        Raises:
            SteerError: a prompt that is too long, or a steering that does not fit.
        """
        op = self.operator(options)
        if self.longest is not None and len(prompt) + options.max_new_tokens > self.longest:
            raise DataError(
                f"The prompt has {len(prompt)} tokens and max_new_tokens is {options.max_new_tokens}, together more "
                f"than the {self.longest} that the model takes; shorten one of them."
            )
        settings = {**self.own, **(options.generation_kwargs or {})}
        decoding = dataclasses.replace(self.decoding, options={**settings, **self.decoding.options})
        tools = self.tools(options)
        structure = self.structure(options, tools)
        return Request(prompt, op, options, decoding if settings else self.decoding, tools, structure)

    def run(self, requests: Sequence[Request]) -> None:
        """Generate answers as rows of batches; what has settings runs alone, since some of those read pads."""
        for request in requests:
            if request.decoding is not self.decoding:
                run_batch(self.model, self.tokenizer, [request.job], request.decoding)
        for jobs in like_lengths([request.job for request in requests if request.decoding is self.decoding]):
            run_batch(self.model, self.tokenizer, jobs, self.decoding)

    def pieces(self, request: Request) -> Iterator[Reply]:
        """Generate one answer in a thread of its own, handing out what comes; closing it ends the thread."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                self.run([request])
            except BaseException as error:  # raised where the pieces are read
                failed.append(error)
                request.pieces.put(None)

        context = contextvars.copy_context()  # what steers the caller steers the thread
        thread = threading.Thread(target=context.run, args=(run,), name=STREAM, daemon=True)
        thread.start()
        try:
            for piece in iter(request.pieces.get, None):
                if (new := request.reader.add(piece)) != NOTHING:
                    yield new
            thread.join()
            if failed:
                raise failed[0]
            request.check()
            if (new := request.reader.add(None)) != NOTHING:
                yield new
        finally:
            request.job.cancel()
            thread.join()

    def identity(self, options: ChatOptions) -> dict[str, Any]:
        """Everything that determines an answer besides the prompt, as JSON values: for caches, traces and logs.

        Contexts that are open around the call count: an answer that was steered by `with sf.steer(...)` is not the
        plain model's.
        """
        around = [entry.operator for entry in entries_of(substitutions_of(self.root, self.layout).host)]
        template = str(getattr(self.tokenizer, "chat_template", None))
        return {
            "model": self.about,
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "steering": steering_identity(self.operator(options)),
            "contexts": [steering_identity(op) for op in around],
            "generation": {**self.own, **(options.generation_kwargs or {})},
            "stop": list(options.stops),
            "tools": [dict(tool) for tool in options.tools or ()],
            **{name: getattr(options, name) for name in OF_CALLS[1:]},
            **{name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")},
        }
