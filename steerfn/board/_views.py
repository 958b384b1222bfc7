"""The components of the page, and where they stand."""

from typing import Any

import gradio as gr

from steerfn.board._compare import exchanges_html
from steerfn.board._controls import Controls
from steerfn.board._presets import Presets
from steerfn.board._state import VIEWS
from steerfn.output import render

BUTTONS = "board-buttons"


class Views:
    """The header, the vectors on the left, a tab for each view, and the code below; made where `gr.Blocks` stands.

    Args:
        presets: the vectors that can be chosen.
        about: what the header says of the model: `model`, `layers`, `width`.
        selected: the view that is open first.
    """

    def __init__(self, presets: Presets, about: dict[str, Any], selected: str) -> None:
        gr.HTML(render("board/header.html.j2", **about), elem_classes="board-header")
        self.controls = Controls(presets, about["layers"])
        self.exchanges, self.vector = gr.State(()), gr.State(None)
        with gr.Row(elem_id="board", equal_height=False):
            with gr.Column(scale=2, min_width=300, elem_id="board-side"):
                self.controls.render_side()
            with gr.Column(scale=5, min_width=320, elem_id="board-main"):
                self.note = gr.HTML("", visible=False, elem_classes="board-note")
                self.opened: dict[str, Any] = {}
                with gr.Tabs(selected=selected) as self.tabs:
                    for view in VIEWS:
                        with gr.Tab(view.capitalize(), id=view) as self.opened[view]:
                            getattr(self, f"_build_{view}")()
                self._build_code()

    def _build_compare(self) -> None:
        self.answers = gr.HTML(exchanges_html(()), elem_classes="board-out", elem_id="answers")
        self.prompt = gr.Textbox(
            label="Prompt", placeholder="How was your day?", lines=2, max_lines=8, elem_id="prompt",
            info="Shift and Enter send it.",
        )  # fmt: skip
        with gr.Row(elem_classes=BUTTONS):
            self.send = gr.Button("Send", variant="primary", elem_id="send")
            self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
            self.again = gr.Button("Again", elem_id="again")
            self.clear = gr.Button("Clear")

    def _build_strength(self) -> None:
        controls = self.controls
        for pair in ((controls.focus, controls.strengths), (controls.prompts, controls.metrics)):
            _row(*pair)
        with gr.Row(elem_classes=BUTTONS):
            self.sweep = gr.Button("Try the strengths", variant="primary", elem_id="sweep")
        self.swept = gr.HTML("", elem_classes="board-out", elem_id="swept")

    def _build_look(self) -> None:
        self.controls.text.render()
        self.controls.tokens.render()
        with gr.Row(elem_classes=BUTTONS):
            self.look = gr.Button("Look", variant="primary", elem_id="look")
        self.looked = gr.HTML("", elem_classes="board-out", elem_id="looked")

    def _build_make(self) -> None:
        controls = self.controls
        with gr.Row(elem_classes=BUTTONS):
            controls.dataset.render()
            self.upload = gr.UploadButton("Texts from a file", file_types=[".txt", ".json", ".jsonl", ".csv", ".tsv"])
        _row(controls.positive, controls.negative)
        _row(controls.method, controls.position, controls.layer)
        with gr.Row(elem_classes=BUTTONS):
            self.lint = gr.Button("Check the texts", elem_id="lint")
            self.profile = gr.Button("Profile the layers", elem_id="profile")
            self.make = gr.Button("Make the vector", variant="primary", elem_id="make")
        self.made = gr.HTML("", elem_classes="board-out", elem_id="made")
        with gr.Row(elem_classes=BUTTONS):
            controls.name.render()
            self.save = gr.Button("Save", interactive=False, elem_id="save")

    def _build_code(self) -> None:
        kind: dict[str, Any] = {"interactive": False, "buttons": ["copy"], "elem_classes": "board-code"}
        with gr.Accordion("Python, command and link that give the same", open=False, elem_id="board-code"):
            self.python = gr.Textbox(label="Python", lines=3, max_lines=24, elem_id="python", **kind)
            self.command = gr.Textbox(label="Command line", lines=2, max_lines=24, elem_id="command", **kind)
            self.link = gr.Textbox(label="Link", lines=2, max_lines=24, elem_id="link", **kind)
            self.json = gr.Textbox(visible=False)
            with gr.Row(elem_classes=BUTTONS):
                self.download = gr.Button("Save the state to a file")
                self.restore = gr.UploadButton("Restore a state from a file", file_types=[".json"])


def _row(*components: Any) -> None:
    with gr.Row():
        for each in components:
            each.render()
