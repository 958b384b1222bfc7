"""From a request to jobs: token ids, operators, seeds; whatever is wrong is told before anything runs."""

import dataclasses
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

from steerfn._blocks import unwrapped
from steerfn._decoding import stop_strings_of
from steerfn._errors import SteerError
from steerfn._layout import layout
from steerfn._steer import prepared
from steerfn._text import Text, encode
from steerfn.operators import Operator, ablate, add, at, chain, everywhere, generated, prompt
from steerfn.serving._job import Job
from steerfn.serving._limits import Limits
from steerfn.serving._refused import RequestError
from steerfn.serving._schemas import Common, Steering
from steerfn.serving._shelf import Shelf

SCOPES = {"everywhere": everywhere, "generated": generated, "prompt": prompt}
DEFAULT_TOKENS = 128
"""Of a chat completion that does not say, as far as the limit allows."""


@dataclasses.dataclass(frozen=True)
class Steered:
    """The steering of a request: its operator and what the audit log says of it."""

    op: Operator | None
    told: list[dict[str, Any]]


class Reader:
    """Makes jobs of requests.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        shelf: the vectors.
        limits: what a request may take.
    """

    def __init__(self, model: Any, tokenizer: Any, shelf: Shelf, limits: Limits) -> None:
        self.root: Any = unwrapped(model)
        self.found = layout(self.root)
        self.tokenizer, self.shelf, self.limits = tokenizer, shelf, limits
        self.longest = getattr(self.root.config.get_text_config(), "max_position_embeddings", None)
        self.stops = stop_strings_of(model)
        self._lock = threading.Lock()  # a fast tokenizer is no place for two threads

    def steering(self, asked: Steering | list[Steering] | None) -> Steered:
        """The operator of a request.

        Raises:
            RequestError: an unknown vector, layers that it lacks, or a model that it does not fit.
        """
        each = [] if asked is None else [asked] if isinstance(asked, Steering) else asked
        if len(each) > self.limits.max_steering:
            raise RequestError(
                f"A request may have {self.limits.max_steering} vectors, not {len(each)}.", param="steering"
            )
        ops, told = [], []
        for one in each:
            vector, digest = self.shelf.get(one.vector)
            try:
                if one.layers is not None:
                    vector = vector.select(one.layers)
                op = add(vector, one.alpha) if one.operation == "add" else ablate(vector)
                ops.append(prepared(at(SCOPES[one.scope], op), self.root, self.found, strict=False))
            except SteerError as error:
                raise RequestError(f"The vector {one.vector!r}: {error}", param="steering") from None
            told.append(one.model_dump() | {"sha256": digest})
        return Steered(chain(*ops) if len(ops) > 1 else ops[0] if ops else None, told)

    def prompts(self, texts: Sequence[Text], chat: bool) -> list[list[int]]:
        """Token ids.

        Raises:
            RequestError: no words, or no chat template.
        """
        try:
            with self._lock:
                return encode(self.tokenizer, texts, chat)
        except SteerError as error:
            raise RequestError(str(error), param="messages" if chat else "prompt") from None

    def jobs(
        self,
        asked: Common,
        prompts: Sequence[Sequence[int]],
        max_tokens: int | None,
        op: Operator | None,
        heard: Callable[[int], Callable[[str | None], Any]],
    ) -> list[Job]:
        """The texts that are asked for, `n` for each prompt, one after the other.

        Raises:
            RequestError: more than the limits allow, or a stop text that is empty.
        """
        limits, n = self.limits, asked.n or 1
        if n * len(prompts) > limits.max_choices:
            raise RequestError(
                f"A request may ask for {limits.max_choices} texts, not {n * len(prompts)} ({len(prompts)} prompts, "
                f"n = {n}).",
                param="n",
            )
        stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        if len(stops) > limits.max_stops or not all(stops):
            raise RequestError(f"stop is at most {limits.max_stops} texts, none of them empty.", param="stop")
        most = min(DEFAULT_TOKENS, limits.max_tokens) if max_tokens is None else max_tokens
        if most > limits.max_tokens:
            raise RequestError(f"max_tokens is at most {limits.max_tokens} here, not {most}.", param="max_tokens")
        longest = max(map(len, prompts))
        if self.longest is not None and longest + most > self.longest:
            raise RequestError(
                f"The prompt has {longest} tokens and max_tokens is {most}, together more than the {self.longest} that "
                "the model takes; shorten one of them.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        out: list[Job] = []
        for ids in prompts:
            for copy in range(n):
                out.append(
                    Job(
                        prompt=list(ids),
                        op=op,
                        max_tokens=most,
                        temperature=1.0 if asked.temperature is None else asked.temperature,
                        top_p=1.0 if asked.top_p is None else asked.top_p,
                        seed=_seed(seed + copy),
                        stops=(*stops, *self.stops),
                        heard=heard(len(out)),
                    )
                )
        return out


def _seed(seed: int) -> int:
    return seed if seed < 2**64 else seed - 2**64
