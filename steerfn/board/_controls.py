"""The controls of the page, read into a state and set from one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from steerfn import datasets, metrics
from steerfn.board._make import METHODS, POSITIONS
from steerfn.board._presets import Presets
from steerfn.board._report_evidence import ReportEvidence
from steerfn.board._state import SCOPES, Push, State
from steerfn.values import DataError, Site, SiteError

SLOTS = 6
"""Vectors at once."""
RANGE = 8.0
"""The largest strength of a slider, unless a state has a larger one."""
WHOLE = "all"
SCOPE_NAMES = {
    "everywhere": "all tokens", "generated": "answer", "prompt": "prompt", "last_prompt_token": "end of prompt",
}  # fmt: skip
assert tuple(SCOPE_NAMES) == SCOPES


class Controls:
    """The components that a state is read from, made where `gr.Blocks` stands.

    Args:
        presets: the vectors that can be chosen.
        n_layers: blocks of the model.
    """

    def __init__(self, presets: Presets, n_layers: int) -> None:
        start = State()
        self.presets = presets
        hidden: dict[str, Any] = {"render": False}
        half, third, small = ({"min_width": width, **hidden} for width in (240, 180, 120))
        self.view, self.turns, self.chosen = gr.State(start.view), gr.State(()), gr.State(())
        self.vectors = gr.Dropdown(
            presets.choices(), label="Vectors", multiselect=True, max_choices=SLOTS, info="They act together.", **hidden
        )
        self.alphas = [gr.Slider(-RANGE, RANGE, 1.0, step=0.1, label="Strength", **hidden) for _ in range(SLOTS)]
        self.sites = [gr.Dropdown([WHOLE], value=WHOLE, label="Layer", **small) for _ in range(SLOTS)]
        self.slots: list[Any] = []
        scopes = [(name, scope) for scope, name in SCOPE_NAMES.items()]
        self.scopes = [gr.Dropdown(scopes, value="everywhere", label="Scope", **small) for _ in range(SLOTS)]
        self.chat = gr.Radio([("Chat", True), ("Plain text", False)], value=True, label="Prompts are", **hidden)
        self.new = gr.Slider(1, 512, start.max_new_tokens, step=1, label="New tokens at most", **hidden)
        self.sample = gr.Checkbox(False, label="Sample, with one seed for both sides", **hidden)
        self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, **hidden)
        self.focus = gr.Dropdown(self.focusable(), value="", label="Vector", **half)
        self.strengths = gr.Textbox(_numbers(start.alphas), label="Strengths, with commas", **half)
        self.prompts = gr.Textbox("\n".join(start.prompts), label="Prompts, one a line", lines=4, max_lines=8, **half)
        self.metrics = gr.Dropdown(
            list(metrics.names()), value=list(start.metrics), label="Metrics", multiselect=True, **half
        )
        self.text = gr.Textbox(start.text, label="Text, taken as it is", lines=2, max_lines=8, **hidden)
        self.tokens = gr.Slider(0, 1, 0, step=1, label="Next token after this many tokens (0: all)", **hidden)
        self.dataset = gr.Dropdown([("my own texts", ""), *datasets.names()], value="", label="Texts", **hidden)
        side: dict[str, Any] = {"lines": 5, "max_lines": 10, **half}
        self.positive = gr.Textbox(label="Positive texts, one a line", placeholder="I love this day.", **side)
        self.negative = gr.Textbox(label="Negative texts, one a line", placeholder="I hate this day.", **side)
        self.method = gr.Dropdown(list(METHODS), value=start.method, label="Method", **third)
        self.position = gr.Dropdown(list(POSITIONS), value=start.position, label="Tokens read", **third)
        self.layer = gr.Dropdown(
            [("the middle", -1), *((str(i), i) for i in range(n_layers))], value=-1, label="Layer", **third
        )  # fmt: skip
        self.name = gr.Textbox(label="Name", placeholder="happy", max_lines=1, **hidden)

    def render_side(self) -> None:
        """Put the vectors, each with a group of its own controls, and how texts are written where the caller stands."""
        self.vectors.render()
        for alpha, site, scope in zip(self.alphas, self.sites, self.scopes, strict=True):
            with gr.Group(visible=False, elem_classes="board-slot") as slot:
                alpha.render()
                with gr.Row():
                    site.render()
                    scope.render()
            self.slots.append(slot)
        self.chat.render()
        with gr.Accordion("Decoding", open=False):
            for each in (self.new, self.sample, self.seed):
                each.render()

    @property
    def inputs(self) -> list[Any]:
        """Every component that a state is read from."""
        return [
            self.view, self.turns, self.chosen, self.vectors, *self.alphas, *self.sites, *self.scopes, self.chat,
            self.new, self.sample, self.seed, self.focus, self.strengths, self.prompts, self.metrics, self.text,
            self.tokens, self.dataset, self.positive, self.negative, self.method, self.position, self.layer, self.name,
        ]  # fmt: skip

    def read(self, values: Mapping[Any, Any]) -> State:
        """The state that the components show.

        Raises:
            DataError: what is written into one of them does not say what it should.
        """
        return State(
            view=values[self.view],
            steering=self.pushes(values, values[self.vectors] or ()),
            turns=tuple(values[self.turns]),
            chat=values[self.chat],
            max_new_tokens=int(values[self.new]),
            sample=values[self.sample],
            seed=int(values[self.seed] or 0),
            focus=values[self.focus] or "",
            alphas=_read_numbers(values[self.strengths]),
            prompts=_lines(values[self.prompts]),
            metrics=tuple(values[self.metrics] or ()),
            text=values[self.text] or "",
            tokens=int(values[self.tokens] or 0),
            dataset=values[self.dataset] or "",
            positive=_lines(values[self.positive]),
            negative=_lines(values[self.negative]),
            method=values[self.method],
            position=values[self.position],
            layer=None if values[self.layer] == -1 else values[self.layer],
            name=(values[self.name] or "").strip(),
        )

    def pushes(self, values: Mapping[Any, Any], names: Sequence[str]) -> tuple[Push, ...]:
        """The entries that the controls of some vectors, in their order, say."""
        return tuple(
            Push(name, float(values[alpha]), None if values[site] == WHOLE else values[site], values[scope])
            for name, alpha, site, scope in zip(names, self.alphas, self.sites, self.scopes, strict=False)
        )

    def write(self, state: State) -> dict[Any, Any]:
        """The values of the components for a state.

        Raises:
            DataError: a vector that is not there, or more of them than there is room for.
        """
        if len(state.steering) > SLOTS:
            raise DataError(f"The page shows {SLOTS} vectors at once, and this state has {len(state.steering)}.")
        names = [push.vector for push in state.steering]
        if len(set(names)) < len(names):
            raise DataError("The page shows each vector once, and this state has one twice; sum their strengths.")
        return {
            **self.write_slots(state.steering),
            self.view: state.view,
            self.turns: state.turns,
            self.vectors: gr.update(choices=self.presets.choices(), value=names),
            self.chat: state.chat,
            self.new: state.max_new_tokens,
            self.sample: state.sample,
            self.seed: state.seed,
            self.focus: gr.update(choices=self.focusable(), value=state.focus),
            self.strengths: _numbers(state.alphas),
            self.prompts: "\n".join(state.prompts),
            self.metrics: list(state.metrics),
            self.text: state.text,
            self.tokens: gr.update(maximum=max(1, state.tokens), value=state.tokens),
            self.dataset: state.dataset,
            self.positive: "\n".join(state.positive),
            self.negative: "\n".join(state.negative),
            self.method: state.method,
            self.position: state.position,
            self.layer: -1 if state.layer is None else state.layer,
            self.name: state.name,
        }

    def focusable(self) -> list[tuple[str, str]]:
        """The vectors of which one is looked at."""
        return [("the first chosen", ""), *self.presets.choices()]

    def choices(self) -> dict[Any, Any]:
        """The components that offer vectors, with those that there are now."""
        return {
            self.vectors: gr.update(choices=self.presets.choices()), self.focus: gr.update(choices=self.focusable()),
        }  # fmt: skip

    def write_slots(self, steering: Sequence[Push]) -> dict[Any, Any]:
        """The controls of the vectors that are chosen.

        Raises:
            DataError: a vector that is not there.
            SiteError: a site that it does not have.
        """
        updates: dict[Any, Any] = {self.chosen: tuple(push.vector for push in steering)}
        updates |= {slot: gr.update(visible=i < len(steering)) for i, slot in enumerate(self.slots)}
        for push, alpha, site, scope in zip(steering, self.alphas, self.sites, self.scopes, strict=False):
            vector = self.presets.get(push.vector)
            sites = {each.name: layer_name(each) for each in vector.sites}
            if push.site not in (None, *sites):
                have = ", ".join(list(sites)[:20])
                raise SiteError(f"The vector {push.vector!r} has no {push.site!r:.80}; it has {have}.")
            most = max(RANGE, abs(push.alpha))
            updates[alpha] = gr.update(
                label=f"Strength of {push.vector}", info=ReportEvidence.of(vector.metadata.get("evidence")).headline,
                value=push.alpha, minimum=-most, maximum=most,
            )  # fmt: skip
            named = [(label, name) for name, label in sites.items()]
            choices = [
                (WHOLE if len(sites) > 1 else named[0][0], WHOLE),
                *(named if len(sites) > 1 or push.site else ()),
            ]
            updates[site] = gr.update(label=f"Layer of {push.vector}", choices=choices, value=push.site or WHOLE)
            updates[scope] = gr.update(label=f"Scope of {push.vector}", value=push.scope)
        return updates


def layer_name(site: Site) -> str:
    """How a site is called where there is little room: a block's output by its number."""
    return str(site.block) if site.kind == "resid_post" else site.name


def _lines(text: str | None) -> tuple[str, ...]:
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _read_numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in re.split(r"[,\s]+", (text or "").strip()) if part)
    except ValueError:
        raise DataError(
            f"The strengths are numbers with commas between them, such as -2, 0, 2, not {text!r:.80}."
        ) from None
