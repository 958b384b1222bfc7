"""What the chat models of other people's frameworks share: a model that answers, steered anew for every answer."""

import contextvars
import dataclasses
import hashlib
import math
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steerfn import _forward
from steerfn._blocks import unwrapped
from steerfn._chat_template import Message
from steerfn._decoding import ends_of, stop_strings_of
from steerfn._errors import DataError, ModelError, SteerError
from steerfn._layout import layout
from steerfn._steer import STREAM, as_steering, prepared
from steerfn._substitute import substitutions_of
from steerfn._text import encode
from steerfn.integrations._identity import steering_identity
from steerfn.operators import Operator
from steerfn.reporting._identity import model_of
from steerfn.serving._batch import like_lengths, run_batch
from steerfn.serving._job import Job

SETTINGS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "sequence_bias",
    "suppress_tokens",
)
"""What `generation_kwargs` may hold: settings of transformers' `generate` that change which token is the best one."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How one answer is generated; what the frameworks' classes have as fields, and calls may override.

    Attributes:
        steering: an operator, a vector, or None for the plain model.
        alpha: strength of a vector; None is 1.
        max_new_tokens: tokens at most.
        temperature: 0 takes the most probable token.
        top_p: the share of probability that is sampled from.
        seed: of the sampling; None draws one.
        stop: texts that end an answer, and are left out of it.
        generation_kwargs: see `SETTINGS`.

    Raises:
        DataError: a value of the wrong kind.
    """

    steering: Any = None
    alpha: Any = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    generation_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not _is(int, self.max_new_tokens) or self.max_new_tokens < 1:
            raise DataError(f"max_new_tokens is a number of tokens from 1, not {self.max_new_tokens!r}.")
        if not _is((int, float), self.temperature) or not 0 <= self.temperature < math.inf:
            raise DataError(f"temperature is a number from 0, where 0 is greedy, not {self.temperature!r}.")
        if not _is((int, float), self.top_p) or not 0 < self.top_p <= 1:
            raise DataError(f"top_p is a share of the probability, above 0 and at most 1, not {self.top_p!r}.")
        if self.seed is not None and (not _is(int, self.seed) or not -(2**63) <= self.seed < 2**64):
            raise DataError(f"seed is an int from -2**63 to 2**64 - 1, or None, not {self.seed!r}.")
        if not isinstance(self.stop, (str, list, tuple, type(None))) or not all(
            isinstance(text, str) and text for text in self.stops
        ):
            raise DataError(f"stop is a text or a list of texts, none of them empty, not {self.stop!r:.80}.")
        if not isinstance(self.generation_kwargs, (Mapping, type(None))):
            raise DataError(f"generation_kwargs is a mapping of names to values, not {self.generation_kwargs!r:.80}.")
        if unknown := sorted(map(str, set(self.generation_kwargs or ()) - set(SETTINGS))):
            raise DataError(
                f"generation_kwargs has no {', '.join(unknown)}; it takes {', '.join(SETTINGS)}, and lengths, sampling "
                "and stop texts are arguments of their own."
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def but(self, **changes: Any) -> "Options":
        """The same with what a call says instead; another steering does not inherit this one's alpha.

        Raises:
            DataError: a name that is none of these, or a value of the wrong kind.
        """
        if unknown := sorted(set(changes) - set(OPTIONS)):
            raise DataError(f"A call takes {', '.join(OPTIONS)}, not {', '.join(unknown)}; leave it out.")
        if "steering" in changes:
            changes = {"alpha": None, **changes}
        return dataclasses.replace(self, **changes)


OPTIONS = tuple(field.name for field in dataclasses.fields(Options))


def _is(kind: Any, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


class Request:
    """One answer to be generated: the row of a batch, and the text that has come so far.

    Args:
        prompt: token ids.
        op: its steering.
        options: all else.
        settings: of transformers' generation.
        stops: the model's own stop strings.
    """

    def __init__(
        self, prompt: list[int], op: Operator | None, options: Options, settings: dict[str, Any], stops: tuple[str, ...]
    ) -> None:
        self.settings = settings
        self.pieces: queue.Queue[str | None] = queue.Queue()
        self.job = Job(
            prompt=prompt,
            op=op,
            max_tokens=options.max_new_tokens,
            temperature=float(options.temperature),
            top_p=float(options.top_p),
            seed=secrets.randbits(63) if options.seed is None else options.seed,
            stops=(*options.stops, *stops),
            heard=self.pieces.put,
        )

    @property
    def text(self) -> str:
        """What has come and was not taken yet; the whole answer, once it has been generated."""
        return "".join(iter(self.pieces.get, None))

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, of the answer, and in all."""
        prompt, answer = len(self.job.prompt), len(self.job.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def check(self) -> None:
        """Whether the answer came to its end.

        Raises:
            SteerError: the model's numbers broke down.
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
        self.root: Any = unwrapped(model)
        self.found = layout(self.root)
        self.ends = frozenset(ends_of(model, tokenizer, {}))
        self.stops = stop_strings_of(model)
        self.longest = getattr(self.root.config.get_text_config(), "max_position_embeddings", None)
        self.about = model_of(model)
        own = getattr(model, "generation_config", None)
        usual = None if own is None else type(own)()  # transformers 4 writes out what changes nothing
        self.own = {
            name: value
            for name in SETTINGS
            if (value := getattr(own, name, None)) is not None and value != getattr(usual, name, None)
        }

    def operator(self, options: Options) -> Operator | None:
        """The steering of an answer, checked against the model.

        Raises:
            SteerError: neither an operator nor a vector, or one that does not fit the model.
        """
        if options.steering is None:
            if options.alpha is not None:
                raise DataError(f"alpha={options.alpha!r} is the strength of a vector; pass steering=vector with it.")
            return None
        op = as_steering(options.steering, options.alpha)
        return prepared(op, self.root, self.found, strict=False)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, through the tokenizer's chat template; an answer begun there is continued.

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
        return encode(self.tokenizer, [list(messages)], None)[0]

    def raw(self, text: str) -> list[int]:
        """The token ids of a text as it is, with one beginning-of-text token, whether or not the text has it written.

        Raises:
            DataError: a text without tokens.
        """
        return encode(self.tokenizer, [text], False)[0]

    def request(self, prompt: list[int], options: Options) -> Request:
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
        return Request(prompt, op, options, settings, self.stops)

    def run(self, requests: Sequence[Request]) -> None:
        """Generate answers as rows of batches; what has settings runs alone, since some of those read pads."""
        for request in requests:
            if request.settings:
                run_batch(self.model, self.tokenizer, [request.job], self.ends, request.settings)
        for jobs in like_lengths([request.job for request in requests if not request.settings]):
            run_batch(self.model, self.tokenizer, jobs, self.ends, {})

    def pieces(self, request: Request) -> Iterator[str]:
        """Generate one answer in a thread of its own, handing out the text as it comes; closing it ends the thread."""
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
            yield from iter(request.pieces.get, None)
            thread.join()
            if failed:
                raise failed[0]
            request.check()
        finally:
            request.job.cancel()
            thread.join()

    def identity(self, options: Options) -> dict[str, Any]:
        """What determines an answer besides the prompt, as JSON values: for caches, traces and logs.

        Contexts that are open around the call count: an answer that was steered by `with sf.steer(...)` is not the
        plain model's.
        """
        around = [entry.operator for entry in _forward.entries_of(substitutions_of(self.root, self.found).host)]
        template = str(getattr(self.tokenizer, "chat_template", None))
        return {
            "model": self.about,
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "steering": steering_identity(self.operator(options)),
            "contexts": [steering_identity(op) for op in around],
            "generation": {**self.own, **(options.generation_kwargs or {})},
            "stop": list(options.stops),
            **{name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")},
        }
