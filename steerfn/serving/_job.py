"""One text to be generated: what was asked for, and what has come so far."""

import dataclasses
import os.path
import threading
import time
from collections.abc import Callable
from typing import Any

from steerfn.operators import Operator


@dataclasses.dataclass(eq=False)
class Job:
    """A row of a batch.

    Attributes:
        prompt: token ids.
        op: its steering; None for none.
        max_tokens: tokens at most.
        temperature: 0 is greedy.
        top_p: the share of probability that is sampled from.
        seed: of its own random numbers.
        stops: texts that end it, and are left out.
        heard: called from the worker's thread with each piece of text, and at the end with None.
        tokens: generated so far.
        reason: why it ended: "stop", "length", "cancelled" or "error".
        error: what went wrong.
        queued: when it was made, by `time.monotonic`.
    """

    prompt: list[int]
    op: Operator | None
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stops: tuple[str, ...]
    heard: Callable[[str | None], Any]
    tokens: list[int] = dataclasses.field(default_factory=list)
    reason: str | None = None
    error: BaseException | None = None
    queued: float = dataclasses.field(default_factory=time.monotonic)
    _told: str = ""
    _cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.reason is not None

    def cancel(self) -> None:
        """Ask for no more tokens; the row ends at the next one."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._cancelled.is_set()

    def add(self, token: int, ends: frozenset[int], decode: Callable[[list[int]], str]) -> None:
        """One more token."""
        if self.cancelled:
            return self.end("cancelled")
        if token in ends:
            self._tell(decode(self.tokens), last=True)
            return None if self.ended else self.end("stop")
        self.tokens.append(token)
        last = len(self.tokens) >= self.max_tokens
        self._tell(decode(self.tokens), last)
        if last and not self.ended:
            self.end("length")
        return None

    def end(self, reason: str, error: BaseException | None = None) -> None:
        """Say that nothing more will come; once."""
        if not self.ended:
            self.reason, self.error = reason, error
            self.heard(None)

    def _tell(self, text: str, last: bool) -> None:
        """Hand out what is sure to be part of the text."""
        cut = min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            self._hand_out(text[:cut])
            return self.end("stop")
        return self._hand_out(text if last else text[: len(text) - self._unsure(text)])

    def _hand_out(self, text: str) -> None:
        # A tokenizer may rewrite what it has said; what was handed out stays, and nothing that comes after it is lost.
        if len(text) > len(self._told):
            piece, self._told = text[len(os.path.commonprefix([self._told, text])) :], text
            self.heard(piece)

    def _unsure(self, text: str) -> int:
        """Characters at the end that may change or belong to a stop text: half a character, or the beginning of one."""
        held = len(text) - len(text.rstrip("\ufffd"))
        for stop in self.stops:
            for size in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:size]):
                    held = size
                    break
        return held
