"""A row of a batch: what is asked for, and the text as it grows."""

import dataclasses
import os.path
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from steerfn.operators import Operator
from steerfn.run._logprobs import TokenLogprob
from steerfn.run._row_sampling import RowSampling
from steerfn.run._structure import Structure


@dataclasses.dataclass(eq=False)
class BatchJob:
    """A row of a batch.

    Attributes:
        prompt: token ids.
        op: its steering; None for none.
        max_tokens: tokens at most; 0 for none, where only the prompt's log-probabilities are asked for.
        sampling: how its tokens are chosen.
        stops: texts that end it, and are left out.
        on_text: called from the worker's thread with each piece of text, and at the end with None.
        structure: what its text must follow, if anything.
        marks: special tokens that its text shows, by their ids: those that begin and end a tool call.
        top_logprobs: how many of the most probable tokens `logprobs` tells for each token; None for no `logprobs`.
        of_prompt: whether `prompt_logprobs` are asked for too.
        tokens: generated so far.
        logprobs: of each token that was generated, the end included.
        prompt_logprobs: of each token of the prompt but the first.
        reason: why it ended: "stop", "length", "cancelled" or "error".
        error: what went wrong.
        queued: when it was made, by `time.monotonic`.
        began: when the first batch or pass that has it began.
    """

    prompt: list[int]
    op: Operator | None
    max_tokens: int
    sampling: RowSampling
    stops: tuple[str, ...]
    on_text: Callable[[str | None], Any]
    structure: Structure | None = None
    marks: Mapping[int, str] = dataclasses.field(default_factory=dict)
    top_logprobs: int | None = None
    of_prompt: bool = False
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    reason: str | None = None
    error: BaseException | None = None
    queued: float = dataclasses.field(default_factory=time.monotonic)
    began: float | None = None
    _emitted: str = ""
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
            self._update(decode(self.tokens), last=True)
            return None if self.ended else self.end("stop")
        self.tokens.append(token)
        last = len(self.tokens) >= self.max_tokens
        self._update(decode(self.tokens), last)
        if last and not self.ended:
            self.end("length")
        return None

    def end(self, reason: str, error: BaseException | None = None) -> None:
        """End the text, once: nothing more is emitted after it."""
        if not self.ended:
            self.reason, self.error = reason, error
            self.on_text(None)

    def _update(self, text: str, last: bool) -> None:
        """Emit what is sure to be part of the text."""
        cut = min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            self._emit(text[:cut])
            return self.end("stop")
        return self._emit(text if last else text[: len(text) - self._unsure(text)])

    def _emit(self, text: str) -> None:
        # A tokenizer may rewrite earlier text; what was emitted stays, and nothing that comes after it is lost.
        if len(text) > len(self._emitted):
            piece, self._emitted = text[len(os.path.commonprefix([self._emitted, text])) :], text
            self.on_text(piece)

    def _unsure(self, text: str) -> int:
        """Characters at the end that may change or belong to a stop text: half a character, or the beginning of one."""
        held = len(text) - len(text.rstrip("\ufffd"))
        for stop in self.stops:
            for size in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:size]):
                    held = size
                    break
        return held
