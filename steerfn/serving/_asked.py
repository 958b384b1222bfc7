"""From a request to jobs: token ids, operators, seeds; whatever is wrong is told before anything runs."""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pydantic import ValidationError

from steerfn._blocks import unwrapped
from steerfn._decoding import stop_strings_of
from steerfn._errors import DataError, SteerError
from steerfn._layout import layout
from steerfn._steer import prepared
from steerfn._text import Text, encode
from steerfn.operators import Operator, ablate, add, at, chain, everywhere, generated, prompt
from steerfn.serving._explain import explain
from steerfn.serving._job import Job
from steerfn.serving._limits import Limits
from steerfn.serving._refused import RequestError
from steerfn.serving._schemas import Common, Steering
from steerfn.serving._shelf import Shelf

SCOPES = {"everywhere": everywhere, "generated": generated, "prompt": prompt}
CHARACTERS = 64
"""No text has more characters than that to a token: what has more than the model takes is refused untokenized."""


@dataclasses.dataclass(frozen=True)
class Steered:
    """The steering of a request: its operator, and what the answer and the audit log say of it."""

    op: Operator | None
    applied: list[dict[str, Any]]


class Reader:
    """Makes jobs of requests.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        shelf: the vectors.
        limits: what a request may take.
        default: the steering of every request, which none can leave out.

    Raises:
        DataError: a default that cannot be applied.
    """

    def __init__(self, model: Any, tokenizer: Any, shelf: Shelf, limits: Limits, default: Any = None) -> None:
        self.root: Any = unwrapped(model)
        self.found = layout(self.root)
        self.tokenizer, self.shelf, self.limits = tokenizer, shelf, limits
        self.longest = getattr(self.root.config.get_text_config(), "max_position_embeddings", None)
        self.stops = stop_strings_of(model)
        self._lock = threading.Lock()  # a fast tokenizer is no place for two threads
        self.default: list[Steering] = []
        if default is not None:
            try:
                asked = Common.model_validate({"steering": default}, strict=True).steering
                self.default = self.entries_of(asked)
                for one in self.default:
                    self._apply(one, "default")
            except (ValidationError, RequestError) as error:
                refused = explain(_at_body(error)) if isinstance(error, ValidationError) else error
                raise DataError(f"The default steering {default!r:.200} cannot be applied: {refused}") from None

    def check_counts(self, asked: Common, texts: Sequence[Any]) -> None:
        """Refuse what exceeds a limit, before anything is read, tokenized or waited for.

        Raises:
            RequestError: more texts, stop texts or vectors than the limits allow, or texts that are too long.
        """
        limits, n = self.limits, asked.n or 1
        if n * len(texts) > limits.max_choices:
            raise RequestError(
                f"A request may ask for {limits.max_choices} texts, not {n * len(texts)} ({len(texts)} prompts, "
                f"n = {n}).",
                param="n",
            )
        if len(_stops(asked)) > limits.max_stops:
            raise RequestError(f"stop is at most {limits.max_stops} texts, not {len(_stops(asked))}.", param="stop")
        each = self.entries_of(asked.steering)
        if len(each) > limits.max_steering:
            raise RequestError(f"A request may have {limits.max_steering} vectors, not {len(each)}.", param="steering")
        for text in texts:
            size = len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)
            if self.longest is not None and size > CHARACTERS * self.longest:
                raise RequestError(
                    f"A prompt has {size} characters, more than the {self.longest} tokens that the model takes; "
                    "shorten it.",
                    param="prompt",
                    code="context_length_exceeded",
                )

    @staticmethod
    def entries_of(asked: Any) -> list[Steering]:
        """The entries of a `steering` field."""
        each = [] if asked is None else asked if isinstance(asked, list) else [asked]
        return [Steering.model_validate({"vector": one}) if isinstance(one, str) else one for one in each]

    def steering(self, asked: Any, allowed: Collection[str] | None = None) -> Steered:
        """The operator of a request: what it asks for, and then the default, which it cannot take back.

        Args:
            asked: its `steering` field.
            allowed: the vectors that its key may name; None for all.

        Raises:
            RequestError: an unknown vector, layers that it lacks, a strength beyond the limit, or a model that it
                does not fit.
        """
        own, default = self._default()
        ops, applied = [], []
        strengths: dict[str, float] = {}
        for one in self.entries_of(asked):
            if allowed is not None and one.vector not in allowed:
                offered = ", ".join(sorted(allowed)[:10]) or "none"
                raise RequestError(
                    f"There is no vector {one.vector!r:.140} for this key; it has {offered}.",
                    404,
                    "steering",
                    "unknown_vector",
                )
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

    def _apply(self, one: Steering, policy: str) -> tuple[Operator, dict[str, Any]]:
        vector, digest = self.shelf.get(one.vector)
        try:
            if one.layers is not None:
                vector = vector.select(one.layers)
            op = add(vector, one.alpha) if one.operation == "add" else ablate(vector)
            op = prepared(at(SCOPES[one.scope], op), self.root, self.found, strict=False)
        except SteerError as error:
            raise RequestError(f"The vector {one.vector!r}: {error}", param="steering") from None
        return op, one.model_dump() | {"sha256": digest, "policy": policy}

    def prompts(self, texts: Sequence[Text], chat: bool, until: float) -> list[list[int]]:
        """Token ids.

        Args:
            texts: prompts or conversations, which were counted.
            chat: whether they are conversations.
            until: when to give up waiting for the tokenizer, by `time.monotonic`.

        Raises:
            RequestError: no words, no chat template, or no time left.
        """
        return [self._prompt(text, chat, until) for text in texts]

    def _prompt(self, text: Text, chat: bool, until: float) -> list[int]:
        """One text's, so that others' come between those of a request."""
        if not self._lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise RequestError("The tokenizer was busy for as long as a request may take; try again later.", 504)
        try:
            return encode(self.tokenizer, [text], chat)[0]
        except SteerError as error:
            raise RequestError(str(error), param="messages" if chat else "prompt") from None
        finally:
            self._lock.release()

    def jobs(
        self,
        asked: Common,
        prompts: Sequence[Sequence[int]],
        max_tokens: int | None,
        op: Operator | None,
        heard: Callable[[int], Callable[[str | None], Any]],
    ) -> list[Job]:
        """The texts that are asked for, `n` for each prompt, one after the other.

        A text gets as many tokens as it asks for, the limit allows, and the model has places for.

        Raises:
            RequestError: a prompt that leaves no place for an answer.
        """
        limits, n = self.limits, asked.n or 1
        stops = _stops(asked)
        longest = max(map(len, prompts))
        if self.longest is not None and longest >= self.longest:
            raise RequestError(
                f"The prompt has {longest} tokens, and the model takes {self.longest} with the answer; shorten it.",
                param="prompt",
                code="context_length_exceeded",
            )
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        out: list[Job] = []
        for ids in prompts:
            left = limits.max_tokens if self.longest is None else min(limits.max_tokens, self.longest - len(ids))
            for copy in range(n):
                out.append(
                    Job(
                        prompt=list(ids),
                        op=op,
                        max_tokens=left if max_tokens is None else min(max_tokens, left),
                        temperature=1.0 if asked.temperature is None else asked.temperature,
                        top_p=1.0 if asked.top_p is None else asked.top_p,
                        seed=_seed(seed + copy),
                        stops=(*stops, *self.stops),
                        heard=heard(len(out)),
                    )
                )
        return out


def _stops(asked: Common) -> tuple[str, ...]:
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())


def _at_body(error: ValidationError) -> list[Any]:
    return [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]


def _seed(seed: int) -> int:
    return seed if seed < 2**64 else seed - 2**64
