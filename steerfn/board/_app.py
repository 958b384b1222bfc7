"""The page: where the controls stand, and what their buttons do."""

import asyncio
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from steerfn.board._command import to_command
from steerfn.board._compare import converse, exchanges_html
from steerfn.board._controls import Controls
from steerfn.board._look import look_html, token_texts
from steerfn.board._make import lint, lint_html, make, profile, profile_html, vector_html
from steerfn.board._presets import Presets
from steerfn.board._python import to_python
from steerfn.board._source import Source
from steerfn.board._state import PROMPTS, VIEWS, Push, State
from steerfn.board._strength import strengths, strengths_html
from steerfn.model import layout, unwrap_model
from steerfn.output import render
from steerfn.values import DataError, SteerError

SHOWN_EVERY = 0.05
"""Seconds between two pictures of a text that is being written."""
LONGEST_LINK = 8000
"""Characters of a link that every browser and server takes."""
DOWNLOAD = """(text) => {
  const a = document.createElement("a");
  a.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  a.download = "steerfn-state.json";
  a.click();
  URL.revokeObjectURL(a.href);
}"""
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
"""Of what runs the model: one at a time, the others wait in line."""
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


def alert(error: Exception) -> Markup:
    """An error on the page, in its own words."""
    return render("board/alert.html.j2", message=str(error))


def in_loop(make: Callable[[], Any]) -> Any:
    """The result of a function that is called inside a running event loop in a thread of its own.

    Elsewhere Gradio sets an event loop for the calling thread, and closes none.
    """

    async def run() -> Any:
        return make()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()


def _note(text: str = "") -> Any:
    """The note above the tabs; no room is kept for it where there is nothing to say."""
    return gr.update(value=text, visible=bool(text))


def _lines_of(texts: Sequence[Any]) -> str:
    """Texts, one a line.

    Raises:
        DataError: texts that are no lines.
    """
    if not all(isinstance(each, str) and len(each.splitlines()) == 1 for each in texts):
        raise DataError(
            "This file holds conversations, or texts of several lines; make its vector with steerfn discover --pairs."
        )
    return "\n".join(texts)


class Page:
    """The page of one model. What a visitor has set lives in the visitor's own session.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        presets: the vectors.
        source: how the model was loaded, for code and commands.
        start: what is shown first, unless the link says otherwise.
    """

    def __init__(self, model: Any, tokenizer: Any, presets: Presets, source: Source, start: State) -> None:
        self.model, self.tokenizer, self.presets, self.start = model, tokenizer, presets, start
        self._source = source
        self._stops: dict[str, threading.Event] = {}
        self.blocks = in_loop(self._build)

    @property
    def source(self) -> Source:
        """The source, with the vectors that there are now."""
        return Source(self._source.model, self._source.options, self._source.folder, self.presets.files())

    def _build(self) -> gr.Blocks:
        at = layout(unwrap_model(self.model))
        with gr.Blocks(title="steerfn", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as blocks:
            about = {"model": self._source.model, "layers": at.n_layers, "width": at.d_model}
            gr.HTML(render("board/header.html.j2", **about), elem_classes="board-header")
            self.controls = Controls(self.presets, at.n_layers)
            self.exchanges = gr.State(())
            with gr.Row(elem_id="board", equal_height=False):
                with gr.Column(scale=2, min_width=300, elem_id="board-side"):
                    self._build_side()
                with gr.Column(scale=5, min_width=320, elem_id="board-main"):
                    self.note = gr.HTML("", visible=False, elem_classes="board-note")
                    self.opened: list[tuple[Any, str]] = []
                    with gr.Tabs(selected=self.start.view) as self.tabs:
                        for view, build in zip(
                            VIEWS,
                            (self._build_compare, self._build_strength, self._build_look, self._build_make),
                            strict=True,
                        ):
                            with gr.Tab(view.capitalize(), id=view) as tab:
                                build()
                            self.opened.append((tab, view))
                    self._build_code()
            self._connect(blocks)
        return blocks

    def _build_side(self) -> None:
        controls = self.controls
        controls.vectors.render()
        self.slots = []
        for parts in zip(controls.alphas, controls.sites, controls.scopes, strict=True):
            with gr.Group(visible=False, elem_classes="board-slot") as slot:
                parts[0].render()
                with gr.Row():
                    parts[1].render()
                    parts[2].render()
            self.slots.append(slot)
        controls.chat.render()
        with gr.Accordion("Decoding", open=False):
            for each in (controls.new, controls.sample, controls.seed):
                each.render()

    def _build_compare(self) -> None:
        self.answers = gr.HTML(exchanges_html(()), elem_classes="board-out", elem_id="answers")
        self.prompt = gr.Textbox(
            label="Prompt", placeholder="How was your day?", lines=2, max_lines=8, elem_id="prompt",
            info="Shift and Enter send it.",
        )  # fmt: skip
        with gr.Row(elem_classes="board-buttons"):
            self.send = gr.Button("Send", variant="primary", min_width=90, elem_id="send")
            self.stop = gr.Button("Stop", variant="stop", interactive=False, min_width=90, elem_id="stop")
            self.again = gr.Button("Again", min_width=90, elem_id="again")
            self.clear = gr.Button("Clear", min_width=90)

    def _build_strength(self) -> None:
        controls = self.controls
        with gr.Row():
            controls.focus.render()
            controls.strengths.render()
        with gr.Row():
            controls.prompts.render()
            controls.metrics.render()
        with gr.Row(elem_classes="board-buttons"):
            self.sweep = gr.Button("Try the strengths", variant="primary", min_width=120, elem_id="sweep")
        self.swept = gr.HTML("", elem_classes="board-out", elem_id="swept")

    def _build_look(self) -> None:
        self.controls.text.render()
        self.controls.tokens.render()
        with gr.Row(elem_classes="board-buttons"):
            self.look = gr.Button("Look", variant="primary", min_width=120, elem_id="look")
        self.looked = gr.HTML("", elem_classes="board-out", elem_id="looked")

    def _build_make(self) -> None:
        controls = self.controls
        with gr.Row(elem_classes="board-buttons"):
            controls.dataset.render()
            self.upload = gr.UploadButton("Texts from a file", file_types=[".txt", ".json", ".jsonl", ".csv", ".tsv"])
        with gr.Row():
            controls.positive.render()
            controls.negative.render()
        with gr.Row():
            for each in (controls.method, controls.position, controls.layer):
                each.render()
        with gr.Row(elem_classes="board-buttons"):
            self.lint = gr.Button("Check the texts", min_width=120, elem_id="lint")
            self.profile = gr.Button("Profile the layers", min_width=120, elem_id="profile")
            self.make = gr.Button("Make the vector", variant="primary", min_width=120, elem_id="make")
        self.made = gr.HTML("", elem_classes="board-out", elem_id="made")
        self.vector = gr.State(None)
        with gr.Row(elem_classes="board-buttons"):
            controls.name.render()
            self.save = gr.Button("Save", interactive=False, min_width=90, elem_id="save")

    def _build_code(self) -> None:
        with gr.Accordion("Python, command and link that give the same", open=False, elem_id="board-code"):
            kind = {
                "lines": 3,
                "max_lines": 24,
                "interactive": False,
                "buttons": ["copy"],
                "elem_classes": "board-code",
            }
            self.python = gr.Textbox(label="Python", elem_id="python", **kind)
            self.command = gr.Textbox(label="Command line", elem_id="command", **kind)
            self.link = gr.Textbox(label="Link", elem_id="link", **kind)
            self.json = gr.Textbox(visible=False)
            with gr.Row(elem_classes="board-buttons"):
                self.download = gr.Button("Save the state to a file", min_width=120)
                self.restore = gr.UploadButton("Restore a state from a file", file_types=[".json"], min_width=120)

    def _connect(self, blocks: gr.Blocks) -> None:
        controls, every = self.controls, set(self.controls.inputs)
        whole = {*every, self.prompt, self.exchanges, self.vector}
        codes = [self.python, self.command, self.link, self.json]
        conversation = [self.answers, self.exchanges, controls.turns, self.prompt, self.stop]
        restored = [*controls.inputs, *self.slots, self.tabs, self.note]

        controls.vectors.input(
            self._choose,
            every,
            [*self.slots, *controls.alphas, *controls.sites, *controls.scopes, controls.chosen, self.note],
            **AT_ONCE,
        )
        opened = blocks.load(self._open, None, restored, **AT_ONCE)
        opened.then(self._resume, whole, conversation, **MODEL)
        blocks.unload(self._leave)
        for trigger, call in (
            (self.send.click, self._send),
            (self.prompt.submit, self._send),
            (self.again.click, self._resume),
        ):
            trigger(call, whole, conversation, **MODEL)
        self.stop.click(self._stop, None, None, **AT_ONCE)
        self.clear.click(self._clear, None, conversation, **AT_ONCE)
        self.sweep.click(self._sweep, every, self.swept, **MODEL)
        self.look.click(self._look, every, [self.looked, controls.tokens], **MODEL)
        self.lint.click(self._lint, every, self.made, **MODEL)
        self.profile.click(self._profile, every, self.made, **MODEL)
        self.make.click(self._make, every, [self.made, self.vector, self.save], **MODEL)
        self.save.click(self._save, whole, [self.made, controls.vectors, controls.focus], **AT_ONCE)
        self.upload.upload(
            self._read_texts,
            self.upload,
            [controls.dataset, controls.positive, controls.negative, self.made],
            **AT_ONCE,
        )
        self.restore.upload(self._restore, self.restore, restored, **AT_ONCE).then(
            self._resume, whole, conversation, **MODEL
        )
        self.download.click(None, self.json, None, js=DOWNLOAD)
        code: dict[str, Any] = {"fn": self._codes, "inputs": {*every, self.prompt}, "outputs": codes, **AT_ONCE}
        gr.on([each.change for each in (*controls.inputs, self.prompt)], **code, trigger_mode="always_last")
        for tab, view in self.opened:
            tab.select(lambda view=view: view, None, controls.view, **AT_ONCE).then(**code)

    # Compare

    def _send(self, values: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        prompt = (values[self.prompt] or "").strip()
        turns = (*values[self.controls.turns], prompt) if values[self.controls.chat] else (prompt,)
        before = values[self.exchanges] if values[self.controls.chat] else ()
        yield from self._converse(values, turns if prompt else (), before, request, sent=True)

    def _resume(self, values: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        """All turns again, with the steering of now."""
        if values[self.controls.turns]:
            yield from self._converse(values, values[self.controls.turns], (), request)
        else:
            yield {self.stop: gr.update(interactive=False)}

    def _converse(
        self, values: dict[Any, Any], turns: Any, before: Any, request: gr.Request, sent: bool = False
    ) -> Iterator[Any]:
        stop = self._stops[str(request.session_hash)] = threading.Event()
        exchanges, shown = tuple(before), 0.0
        try:
            state = self.controls.read({**values, self.controls.turns: turns, self.controls.view: "compare"})
            texts = converse(self.model, self.tokenizer, self.presets, state, exchanges)
            yield {self.stop: gr.update(interactive=True)} | (
                {self.prompt: ""} if sent and turns and state.chat else {}
            )
            try:
                for exchanges in texts:
                    if stop.is_set():
                        break
                    if time.monotonic() - shown > SHOWN_EVERY:
                        shown = time.monotonic()
                        yield {self.answers: exchanges_html(exchanges, writing=True)}
            finally:
                texts.close()
            answers = exchanges_html(exchanges)
        except SteerError as error:
            answers, turns, exchanges = exchanges_html(before) + alert(error), values[self.controls.turns], before
        yield {
            self.answers: answers, self.exchanges: exchanges, self.controls.turns: turns[: len(exchanges)] or turns[:0],
            self.stop: gr.update(interactive=False),
        }  # fmt: skip

    def _stop(self, request: gr.Request) -> None:
        if stop := self._stops.get(str(request.session_hash)):
            stop.set()

    def _leave(self, request: gr.Request) -> None:
        if stop := self._stops.pop(str(request.session_hash), None):
            stop.set()

    def _clear(self, request: gr.Request) -> dict[Any, Any]:
        self._stop(request)
        return {self.answers: exchanges_html(()), self.exchanges: (), self.controls.turns: ()}

    # Strength, look, make

    def _show_view(self, values: dict[Any, Any], view: str, show: Callable[[State], Markup]) -> Markup:
        """The HTML of a view for the controls as they are; an error in its own words."""
        try:
            return show(self.controls.read({**values, self.controls.view: view}))
        except SteerError as error:
            return alert(error)

    def _sweep(self, values: dict[Any, Any]) -> Markup:
        return self._show_view(
            values, "strength", lambda state: strengths_html(strengths(self.model, self.tokenizer, self.presets, state))
        )

    def _look(self, values: dict[Any, Any]) -> dict[Any, Any]:
        most: dict[str, Any] = {"maximum": max(1, len(token_texts(self.tokenizer, values[self.controls.text] or " ")))}
        most["value"] = min(values[self.controls.tokens] or 0, most["maximum"])
        shown = self._show_view(
            {**values, self.controls.tokens: most["value"]}, "look",
            lambda state: look_html(self.model, self.tokenizer, self.presets, state),
        )  # fmt: skip
        return {self.looked: shown, self.controls.tokens: gr.update(**most)}

    def _lint(self, values: dict[Any, Any]) -> Markup:
        return self._show_view(values, "make", lambda state: lint_html(lint(state)))

    def _profile(self, values: dict[Any, Any]) -> Markup:
        return self._show_view(values, "make", lambda state: profile_html(profile(self.model, self.tokenizer, state)))

    def _make(self, values: dict[Any, Any]) -> dict[Any, Any]:
        made: list[Any] = [None]

        def show(state: State) -> Markup:
            made[0] = make(self.model, self.tokenizer, state)
            return vector_html(made[0], lint(state))

        shown = self._show_view(values, "make", show)
        return {self.made: shown, self.vector: made[0], self.save: gr.update(interactive=made[0] is not None)}

    def _save(self, values: dict[Any, Any]) -> dict[Any, Any]:
        def show(state: State) -> Markup:
            return render(
                "board/saved.html.j2", place=self.presets.save(state.name, values[self.vector]), name=state.name
            )

        shown, names = self._show_view(values, "make", show), self.presets.names()
        return {
            self.made: shown, self.controls.vectors: gr.update(choices=names),
            self.controls.focus: gr.update(choices=["", *names]),
        }  # fmt: skip

    def _read_texts(self, path: str) -> dict[Any, Any]:
        from steerfn.datasets import from_file

        try:
            texts = from_file(path)
            positive, negative = (_lines_of(side) for side in (texts.positive, texts.negative))
        except SteerError as error:
            return {self.made: alert(error)}
        controls = self.controls
        return {
            controls.dataset: "", controls.positive: positive,
            controls.negative: negative, self.made: "",
        }  # fmt: skip

    # States

    def _choose(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """The controls of the vectors that are chosen now; one that was there keeps its place's settings."""
        controls = self.controls
        try:
            names = values[controls.vectors] or []
            kept = {push.vector: push for push in controls.pushes(values, values[controls.chosen])}
            updates = controls.slots([kept.get(name, Push(name)) for name in names])
        except SteerError as error:
            return {self.note: _note(alert(error))}
        shown = {slot: gr.update(visible=i < len(names)) for i, slot in enumerate(self.slots)}
        return {**updates, **shown, controls.chosen: tuple(names), self.note: _note()}

    def _show(self, state: State, note: Markup | str = "") -> dict[Any, Any]:
        shown = {slot: gr.update(visible=i < len(state.steering)) for i, slot in enumerate(self.slots)}
        return {
            **self.controls.write(state), **shown, self.tabs: gr.update(selected=state.view), self.note: _note(note),
        }  # fmt: skip

    def _open(self, request: gr.Request) -> dict[Any, Any]:
        try:
            query = str(request.query_params)
            shown = self._show(State.from_query(query) if query else self.start)
            if shown[self.controls.view] == self.start.view:
                del shown[self.tabs]  # it is open, unless the visitor was faster and has opened another
            return shown
        except SteerError as error:
            return self._show(self.start, alert(error))

    def _restore(self, path: str) -> dict[Any, Any]:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return self._show(State.from_json(file.read(1_000_001)))
        except SteerError as error:
            return {self.note: _note(alert(error))}

    def _codes(self, values: dict[Any, Any], request: gr.Request) -> list[str]:
        try:
            state = self.controls.read(values)
            if not state.turns:  # nothing is sent yet
                state = dataclasses.replace(state, turns=((values[self.prompt] or "").strip() or PROMPTS[0],))
        except SteerError as error:
            return [str(error)] * 3 + [""]
        source, query = self.source, state.to_query()
        link = str(request.request.base_url) + (f"?{query}" if query else "")  # pyright: ignore[reportOptionalMemberAccess]
        if len(link) > LONGEST_LINK:
            link = "This state is too long for a link; save it to a file."
        return [to_python(state, source), to_command(state, source), link, state.to_json()]
