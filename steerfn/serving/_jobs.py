"""From a request to jobs: token ids, operators, seeds; whatever is wrong is told before anything runs."""

import contextlib
import dataclasses
import functools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from steerfn.model import layout, unwrap_model
from steerfn.operators import Operator, ablate, add, at, chain, everywhere, generated, outside_tool_calls, prompt
from steerfn.operators.scopes import Scope
from steerfn.run import BatchJob, Chat, Decoding, RowSampling, Structure, Text, ToolReader, check_ids, encode
from steerfn.serving._explain import explain
from steerfn.serving._keys import Allowed
from steerfn.serving._limits import Limits
from steerfn.serving._request_error import RequestError
from steerfn.serving._schemas import Common, Completion, SteeringRequest
from steerfn.serving._structured import structure_of, tools_of
from steerfn.serving._vectors import Shelf
from steerfn.values import DataError, SteerError
from steerfn.verbs import prepare_operator

SCOPES = {"everywhere": everywhere, "generated": generated, "prompt": prompt}
CHARACTERS = 64
"""No text has more characters than that to a token: what has more than the model takes is refused untokenized."""


@dataclasses.dataclass(frozen=True)
class Steered:
    """The steering of a request: its operator, and what the answer and the audit log say of it."""

    op: Operator | None
    applied: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Work:
    """A request, read: all that its jobs are made of.

    Attributes:
        steered: its steering.
        prompts: the token ids of each prompt.
        tools: reads tool calls out of its answers; None where there are no tools.
        structure: what its answers must keep to.
    """

    steered: Steered
    prompts: list[list[int]]
    tools: ToolReader | None
    structure: Structure | None


class Reader:
    """Makes jobs of requests.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        shelf: the vectors.
        limits: what a request may take.
        decoding: how the model decodes: where its texts end.
        default: the steering of every request, which none can leave out.

    Raises:
        DataError: a default that cannot be applied.
    """

    def __init__(
        self, model: Any, tokenizer: Any, shelf: Shelf, limits: Limits, decoding: Decoding, default: Any = None
    ) -> None:
        self.root: Any = unwrap_model(model)
        self.layout = layout(self.root)
        self.tokenizer, self.shelf, self.limits = tokenizer, shelf, limits
        self.longest = getattr(self.root.config.get_text_config(), "max_position_embeddings", None)
        self.decoding = decoding
        self.token_text = functools.lru_cache(maxsize=4096)(functools.partial(_token_text, tokenizer))
        self._lock = threading.Lock()  # a fast tokenizer is no place for two threads
        self.default: list[SteeringRequest] = []
        if default is not None:
            with _refusing(default):
                self.default = _default_of(default)
                for one in self.default:
                    self._apply(one, "default")

    def check_counts(self, body: Common, texts: Sequence[Any]) -> None:
        """Refuse what exceeds a limit, before anything is read, tokenized or waited for.

        Raises:
            RequestError: more texts, stop texts or vectors than the limits allow, or texts that are too long.
        """
        limits, n = self.limits, body.n or 1
        if n * len(texts) > limits.max_choices:
            raise RequestError(
                f"A request may ask for {limits.max_choices} texts, not {n * len(texts)} ({len(texts)} prompts, "
                f"n = {n}).",
                param="n",
            )
        if len(_stops(body)) > limits.max_stops:
            raise RequestError(f"stop is at most {limits.max_stops} texts, not {len(_stops(body))}.", param="stop")
        each = self.entries_of(body.steering)
        if len(each) > limits.max_steering:
            raise RequestError(f"A request may have {limits.max_steering} vectors, not {len(each)}.", param="steering")
        more = len(body.model_dump_json(include={"tools"})) if getattr(body, "tools", None) else 0
        for text in texts:
            size = more + sum(map(_size, text) if isinstance(text, list) else [len(text)])
            if self.longest is not None and size > CHARACTERS * self.longest:
                raise RequestError(
                    f"A prompt has {size} characters, more than the {self.longest} tokens that the model takes; "
                    "shorten it.",
                    param="prompt",
                    code="context_length_exceeded",
                )

    @staticmethod
    def entries_of(value: Any) -> list[SteeringRequest]:
        """The entries of a `steering` field."""
        each = [] if value is None else value if isinstance(value, list) else [value]
        return [SteeringRequest.model_validate({"vector": one}) if isinstance(one, str) else one for one in each]

    def steering(self, value: Any, allowed: Allowed | None = None) -> Steered:
        """The operator of a request: what it asks for, and then the default, which it cannot take back.

        Args:
            value: its `steering` field.
            allowed: the vectors that its key may name, and how strongly; None for all.

        Raises:
            RequestError: an unknown vector, layers that it lacks, a strength beyond the limit or the key's range, or a
                model that it does not fit.
        """
        own, default = self._default()
        ops, applied = [], []
        strengths: dict[str, float] = {}
        for one in self.entries_of(value):
            if allowed is not None:
                allowed.check_name(one.vector)
            op, entry = self._apply(one, "request")
            if entry["sha256"] in {each["sha256"] for each in default}:
                raise RequestError(
                    f"The vector {one.vector!r} is part of this server's default steering, which a request cannot "
                    "change; leave it out.",
                    param="steering",
                    code="default_steering",
                )
            if one.operation == "add":
                total = strengths[entry["sha256"]] = strengths.get(entry["sha256"], 0.0) + abs(one.alpha)
                if total > self.limits.max_alpha:
                    raise RequestError(
                        f"The strengths of the vector {one.vector!r} come to {total:g} (without signs), and this "
                        f"server allows {self.limits.max_alpha:g}; pass a smaller alpha.",
                        param="steering",
                        code="alpha_too_large",
                    )
            ops.append(op)
            applied.append(entry)
        if allowed is not None:
            allowed.check_strengths(applied)
        ops, applied = [*ops, *own], [*applied, *default]
        return Steered(chain(*ops) if len(ops) > 1 else ops[0] if ops else None, applied)

    def _default(self) -> tuple[list[Operator], list[dict[str, Any]]]:
        """The default steering, read like any other; a server that cannot apply it runs nothing."""
        try:
            pairs = [self._apply(one, "default") for one in self.default]
        except RequestError as error:
            raise RequestError(
                f"The default steering of this server cannot be applied: {error.message}", 503, code="default_steering"
            ) from None
        return [op for op, _ in pairs], [entry for _, entry in pairs]

    @functools.cached_property
    def _outside_tool_calls(self) -> Scope:
        return outside_tool_calls(self.tokenizer)

    def _apply(self, one: SteeringRequest, policy: str) -> tuple[Operator, dict[str, Any]]:
        vector, digest = self.shelf.get(one.vector)
        try:
            if one.layers is not None:
                vector = vector.select(one.layers)
            op = add(vector, one.alpha) if one.operation == "add" else ablate(vector)
            scope = SCOPES[one.scope]
            if one.outside_tool_calls:
                scope = scope & self._outside_tool_calls
            op = prepare_operator(at(scope, op), self.root, self.layout)
        except SteerError as error:
            raise RequestError(f"The vector {one.vector!r}: {error}", param="steering") from None
        return op, one.model_dump() | {"sha256": digest, "policy": policy}

    def read(self, body: Common, allowed: Allowed | None, texts: Sequence[Text], chat: bool, until: float) -> Work:
        """Everything of a request that can be refused.

        Args:
            body: the request.
            allowed: the vectors that its key may name; None for all.
            texts: prompts, token ids or conversations, which were counted.
            chat: whether they are conversations.
            until: when to give up waiting for the tokenizer, by `time.monotonic`.

        Raises:
            RequestError: whatever is wrong with it, or no time left.
        """
        steered, tools = self.steering(body.steering, allowed), tools_of(body, self.tokenizer)
        structure = structure_of(body, tools, self.tokenizer, self.decoding)
        switches: Chat = {"tools": tools.tools} if tools is not None else chat
        return Work(steered, [self._prompt(text, switches, until) for text in texts], tools, structure)

    def _prompt(self, text: Text, chat: Chat, until: float) -> list[int]:
        """One text's token ids, so that others' come between those of a request."""
        if not self._lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise RequestError("The tokenizer was busy for as long as a request may take; try again later.", 504)
        try:
            ids = encode(self.tokenizer, [text], chat)[0]
            check_ids(self.root, [ids])
            return ids
        except SteerError as error:
            raise RequestError(str(error), param="messages" if chat else "prompt") from None
        finally:
            self._lock.release()

    def jobs(
        self,
        body: Common,
        work: Work,
        max_tokens: int | None,
        on_text: Callable[[int], Callable[[str | None], Any]],
    ) -> list[BatchJob]:
        """The texts that are asked for, `n` for each prompt, one after the other.

        A text gets as many tokens as it asks for, the limit allows, and the model has places for.

        Raises:
            RequestError: a prompt that leaves no place for an answer.
        """
        limits, n = self.limits, body.n or 1
        stops = _stops(body)
        longest = max(map(len, work.prompts))
        if self.longest is not None and longest >= self.longest:
            raise RequestError(
                f"The prompt has {longest} tokens, and the model takes {self.longest} with the answer; shorten it.",
                param="prompt",
                code="context_length_exceeded",
            )
        seed = secrets.randbits(63) if body.seed is None else body.seed
        sampling, echo = self._sampling(body), bool(getattr(body, "echo", False))
        top = _top_logprobs(body)
        out: list[BatchJob] = []
        for ids in work.prompts:
            left = limits.max_tokens if self.longest is None else min(limits.max_tokens, self.longest - len(ids))
            for copy in range(n):
                out.append(
                    BatchJob(
                        prompt=list(ids),
                        op=work.steered.op,
                        max_tokens=left if max_tokens is None else min(max_tokens, left),
                        sampling=dataclasses.replace(sampling, seed=_seed(seed + copy)),
                        stops=(*stops, *self.decoding.stop_strings),
                        on_text=on_text(len(out)),
                        structure=work.structure,
                        marks={} if work.tools is None else work.tools.mark_texts,
                        top_logprobs=top,
                        of_prompt=echo and top is not None,
                    )
                )
        return out

    def _sampling(self, body: Common) -> RowSampling:
        """How the tokens of a request's texts are chosen; what it leaves open is as in OpenAI's API.

        Raises:
            RequestError: a bias for what is no token of this model.
        """
        fields = {field.name: getattr(body, field.name, None) for field in dataclasses.fields(RowSampling)}
        given = {name: value for name, value in fields.items() if value is not None and name != "seed"}
        size = self.root.get_output_embeddings().weight.shape[0] if body.logit_bias else 0
        biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
        if biases and max(biases) >= size:
            raise RequestError(
                f"logit_bias has the token {max(biases)}, and those of this model are 0 to {size - 1}.",
                param="logit_bias",
            )
        return RowSampling(**{"temperature": 1.0, **given, "logit_bias": biases, "top_k": max(0, body.top_k or 0)})


def check_default(default: Any, folder: Any) -> None:
    """Refuse a default steering that cannot be applied to any model: by its form, or by the names of its vectors.

    Raises:
        DataError: such a one.
        FileError: no such folder.
    """
    shelf = Shelf(folder, None)
    with _refusing(default):
        for one in _default_of(default):
            shelf.path(one.vector)


def _default_of(default: Any) -> list[SteeringRequest]:
    return Reader.entries_of(Common.model_validate({"steering": default}, strict=True).steering)


@contextlib.contextmanager
def _refusing(default: Any) -> Iterator[None]:
    try:
        yield
    except (ValidationError, RequestError) as error:
        refused = explain(_at_body(error)) if isinstance(error, ValidationError) else error
        raise DataError(f"The default steering {default!r:.200} cannot be applied: {refused}") from None


def _stops(body: Common) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _token_text(tokenizer: Any, token: int) -> str:
    """The text of a token, special or not."""
    return tokenizer.decode([token], clean_up_tokenization_spaces=False)


def _size(part: Any) -> int:
    """Characters of a message, its calls included; a token id counts as one."""
    return 1 if isinstance(part, int) else len(part["content"]) + len(str(part.get("tool_calls", "")))


def _top_logprobs(body: Common) -> int | None:
    """How many of the most probable tokens a request wants to know for each token; None for no log-probabilities.

    Raises:
        RequestError: `top_logprobs` without `logprobs`.
    """
    wanted, top = getattr(body, "logprobs", None), getattr(body, "top_logprobs", None)
    if isinstance(body, Completion):
        return wanted
    if top and not wanted:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    return (top or 0) if wanted else None


def _at_body(error: ValidationError) -> list[Any]:
    return [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]


def _seed(seed: int) -> int:
    return seed if seed < 2**64 else seed - 2**64
