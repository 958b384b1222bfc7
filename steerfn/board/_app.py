"""The page: its components connected to what their events do."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gradio as gr
from markupsafe import Markup

from steerfn.board._alert import alert
from steerfn.board._command import to_command
from steerfn.board._conversation import Conversation
from steerfn.board._in_loop import in_loop
from steerfn.board._look import token_texts
from steerfn.board._make import lint, lint_html, make, profile, profile_html, sides_of_file, vector_html
from steerfn.board._presets import Presets
from steerfn.board._python import to_python
from steerfn.board._result import result_html
from steerfn.board._source import Source
from steerfn.board._state import PROMPTS, Push, State
from steerfn.board._views import Views
from steerfn.model import layout, unwrap_model
from steerfn.output import render
from steerfn.values import SteerError, fingerprint, warn

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

Values = dict[Any, Any]
"""What the components show, or will show."""


class Page:
    """The page of one model. What a visitor has set lives in the visitor's own session.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        presets: the vectors.
        source: how the model was loaded, for code and commands.
        start: what is shown first, unless the link says otherwise.

    Warns:
        SteerWarning: the folder of the vectors is not there yet.
    """

    def __init__(self, model: Any, tokenizer: Any, presets: Presets, source: Source, start: State) -> None:
        self.model, self.tokenizer, self.presets, self.start = model, tokenizer, presets, start
        self._source = source
        self.blocks = in_loop(self._build)
        if note := presets.note():
            warn(note)

    @property
    def source(self) -> Source:
        """The source, with the vectors that there are now."""
        return dataclasses.replace(self._source, files=self.presets.files())

    def _build(self) -> gr.Blocks:
        at = layout(unwrap_model(self.model))
        about = {"model": fingerprint(self.model)["name"], "layers": at.n_layers, "width": at.d_model}
        with gr.Blocks(title="steerfn", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as blocks:
            self.views = Views(self.presets, about, self.start.view)
            self.controls = self.views.controls
            self._connect(blocks)
        return blocks

    def _connect(self, blocks: gr.Blocks) -> None:
        views, controls = self.views, self.controls
        conversation = Conversation(self.model, self.tokenizer, self.presets, views)
        every = set(controls.inputs)
        whole, answered = {*every, views.prompt, views.exchanges, views.vector}, conversation.outputs
        restored = [*controls.inputs, *controls.slots, views.tabs, views.note]

        for event in (
            blocks.load(self._open, None, restored, **AT_ONCE),
            views.restore.upload(self._restore, views.restore, restored, **AT_ONCE),
        ):
            event.then(conversation.resume, whole, answered, **MODEL)
        blocks.unload(conversation.leave)
        for trigger, call in (
            (views.send.click, conversation.send),
            (views.prompt.submit, conversation.send),
            (views.again.click, conversation.resume),
        ):
            trigger(call, whole, answered, **MODEL)
        views.stop.click(conversation.stop, None, None, **AT_ONCE)
        views.clear.click(conversation.clear, None, answered, **AT_ONCE)

        chosen = [controls.chosen, *controls.slots, *controls.alphas, *controls.sites, *controls.scopes, views.note]
        controls.vectors.input(self._choose, every, chosen, **AT_ONCE)
        views.sweep.click(self._sweep, every, views.swept, **MODEL)
        views.look.click(self._look, every, [views.looked, controls.tokens], **MODEL)
        views.lint.click(self._lint, every, views.made, **MODEL)
        views.profile.click(self._profile, every, views.made, **MODEL)
        views.make.click(self._make, every, [views.made, views.vector, views.save], **MODEL)
        views.save.click(self._save, whole, [views.made, controls.vectors, controls.focus], **AT_ONCE)
        texts = [controls.dataset, controls.positive, controls.negative, views.made]
        views.upload.upload(self._read_texts, views.upload, texts, **AT_ONCE)

        views.download.click(None, views.json, None, js=DOWNLOAD)
        codes = [views.python, views.command, views.link, views.json]
        code: dict[str, Any] = {"fn": self._codes, "inputs": {*every, views.prompt}, "outputs": codes, **AT_ONCE}
        gr.on([each.change for each in (*controls.inputs, views.prompt)], **code, trigger_mode="always_last")
        for view, tab in views.opened.items():
            tab.select(lambda view=view: view, None, controls.view, **AT_ONCE).then(**code)

    # What the buttons of the views do

    def _show_view(self, values: Values, view: str, show: Callable[[State], Markup]) -> Markup:
        """The HTML of a view for the controls as they are; an error in its own words."""
        try:
            return show(self.controls.read({**values, self.controls.view: view}))
        except SteerError as error:
            return alert(error)

    def _result(self, state: State) -> Markup:
        return result_html(self.model, self.tokenizer, self.presets, state)

    def _sweep(self, values: Values) -> Markup:
        return self._show_view(values, "strength", self._result)

    def _look(self, values: Values) -> Values:
        controls = self.controls
        most = max(1, len(token_texts(self.tokenizer, values[controls.text] or " ")))
        tokens = min(values[controls.tokens] or 0, most)
        shown = self._show_view({**values, controls.tokens: tokens}, "look", self._result)
        return {self.views.looked: shown, controls.tokens: gr.update(maximum=most, value=tokens)}

    def _lint(self, values: Values) -> Markup:
        return self._show_view(values, "make", lambda state: lint_html(lint(state)))

    def _profile(self, values: Values) -> Markup:
        return self._show_view(values, "make", lambda state: profile_html(profile(self.model, self.tokenizer, state)))

    def _make(self, values: Values) -> Values:
        made: list[Any] = []

        def show(state: State) -> Markup:
            made.append(make(self.model, self.tokenizer, state))
            return vector_html(made[0], lint(state))

        shown, views = self._show_view(values, "make", show), self.views
        return {
            views.made: shown, views.vector: made[0] if made else None, views.save: gr.update(interactive=bool(made)),
        }  # fmt: skip

    def _save(self, values: Values) -> Values:
        def show(state: State) -> Markup:
            place = self.presets.save(state.name, values[self.views.vector])
            return render("board/saved.html.j2", place=place, name=state.name)

        return {self.views.made: self._show_view(values, "make", show), **self.controls.choices()}

    def _read_texts(self, path: str) -> Values:
        controls = self.controls
        try:
            positive, negative = sides_of_file(path)
        except SteerError as error:
            return {self.views.made: alert(error)}
        return {
            controls.dataset: "", controls.positive: positive, controls.negative: negative, self.views.made: "",
        }  # fmt: skip

    # States

    def _note(self, text: str = "") -> Values:
        """The note above the tabs; no room is kept for it where there is nothing to say."""
        return {self.views.note: gr.update(value=text, visible=bool(text))}

    def _choose(self, values: Values) -> Values:
        """The controls of the vectors that are chosen now; one that was there keeps its settings."""
        controls = self.controls
        try:
            names = values[controls.vectors] or []
            kept = {push.vector: push for push in controls.pushes(values, values[controls.chosen])}
            pushes = [kept.get(name) or Push(name, self.presets.alpha(name)) for name in names]
            return {**controls.write_slots(pushes), **self._note()}
        except SteerError as error:
            return self._note(alert(error))

    def _show(self, state: State, note: str = "") -> Values:
        return {**self.controls.write(state), self.views.tabs: gr.update(selected=state.view), **self._note(note)}

    def _open(self, request: gr.Request) -> Values:
        """Set what a link or the start says, and no more: a fast visitor has written into the rest already."""
        controls = self.controls
        try:
            query, note = str(request.query_params), self.presets.note()
            note = Markup('<p role="status">{}</p>').format(note) if note else ""
            shown = self._show(State.from_query(query) if query else self.start, note)
        except SteerError as error:
            shown = self._show(self.start, alert(error))
        if shown[controls.view] == self.start.view:
            del shown[self.views.tabs]  # it is open
        built = controls.write(State())
        return {
            **controls.choices(),
            **{each: to for each, to in shown.items() if each not in built or to != built[each]},
        }

    def _restore(self, path: str) -> Values:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return self._show(State.from_json(file.read(1_000_001)))
        except SteerError as error:
            return self._note(alert(error))

    def _codes(self, values: Values, request: gr.Request) -> list[str]:
        try:
            state = self.controls.read(values)
            if not state.turns:  # nothing is sent yet
                turn = (values[self.views.prompt] or "").strip() or PROMPTS[0]
                state = dataclasses.replace(state, turns=(turn,))
        except SteerError as error:
            return [str(error)] * 3 + [""]
        source, query = self.source, state.to_query()
        link = str(request.request.base_url) + (f"?{query}" if query else "")  # pyright: ignore[reportOptionalMemberAccess]
        if len(link) > LONGEST_LINK:
            link = "This state is too long for a link; save it to a file."
        return [to_python(state, source), to_command(state, source), link, state.to_json()]
