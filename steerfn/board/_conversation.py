"""The buttons beside a conversation: send, stop, again, clear."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from steerfn.board._alert import alert
from steerfn.board._compare import converse, exchanges_html
from steerfn.board._presets import Presets
from steerfn.board._views import Views
from steerfn.values import SteerError

SHOWN_EVERY = 0.05
"""Seconds between two pictures of a text that is being written."""


class Conversation:
    """The conversations of all visitors; what each has said lies in the visitor's own session.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        presets: the vectors.
        views: the components.
    """

    def __init__(self, model: Any, tokenizer: Any, presets: Presets, views: Views) -> None:
        self.model, self.tokenizer, self.presets, self.views = model, tokenizer, presets, views
        self._stops: dict[str, threading.Event] = {}

    @property
    def outputs(self) -> list[Any]:
        """The components that change."""
        views = self.views
        return [views.answers, views.exchanges, views.controls.turns, views.prompt, views.stop]

    def send(self, values: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        """Answer the prompt: of a chat as its next turn, of plain text in the place of the last one."""
        views, controls = self.views, self.views.controls
        prompt = (values[views.prompt] or "").strip()
        turns, before = (values[controls.turns], values[views.exchanges]) if values[controls.chat] else ((), ())
        taken = {views.prompt: ""} if prompt and values[controls.chat] else {}
        yield from self._answer(values, (*turns, prompt) if prompt else (), before, request, taken)

    def resume(self, values: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        """All turns again, with the steering of now."""
        if turns := values[self.views.controls.turns]:
            yield from self._answer(values, turns, (), request, {})
        else:
            yield {self.views.stop: gr.update(interactive=False)}

    def _answer(
        self, values: dict[Any, Any], turns: Any, before: Any, request: gr.Request, first: dict[Any, Any]
    ) -> Iterator[Any]:
        stop = self._stops[str(request.session_hash)] = threading.Event()
        views, controls = self.views, self.views.controls
        exchanges, shown = tuple(before), 0.0
        try:
            state = controls.read({**values, controls.turns: turns, controls.view: "compare"})
            texts = converse(self.model, self.tokenizer, self.presets, state, exchanges)
            yield {views.stop: gr.update(interactive=True), **first}
            try:
                for exchanges in texts:
                    if stop.is_set():
                        break
                    if time.monotonic() - shown > SHOWN_EVERY:
                        shown = time.monotonic()
                        yield {views.answers: exchanges_html(exchanges, writing=True)}
            finally:
                texts.close()
            answers = exchanges_html(exchanges)
        except SteerError as error:
            answers, turns, exchanges = exchanges_html(before) + alert(error), values[controls.turns], before
        yield {
            views.answers: answers, views.exchanges: exchanges, controls.turns: turns[: len(exchanges)] or turns[:0],
            views.stop: gr.update(interactive=False),
        }  # fmt: skip

    def stop(self, request: gr.Request) -> None:
        """End the text that is being written for this visitor."""
        if stop := self._stops.get(str(request.session_hash)):
            stop.set()

    def leave(self, request: gr.Request) -> None:
        """The visitor is gone."""
        self.stop(request)
        self._stops.pop(str(request.session_hash), None)

    def clear(self, request: gr.Request) -> dict[Any, Any]:
        """Begin again."""
        self.stop(request)
        views = self.views
        return {views.answers: exchanges_html(()), views.exchanges: (), views.controls.turns: ()}
