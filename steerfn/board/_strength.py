"""Strengths at a glance: a sweep of one vector, a small figure for each metric."""

from typing import Any

from markupsafe import Markup

from steerfn import plot
from steerfn.board._alert import alert
from steerfn.board._pictures import picture
from steerfn.board._presets import Presets
from steerfn.board._state import State
from steerfn.board._steering import SCOPES
from steerfn.evaluate import Sweep, sweep
from steerfn.output import Table, render
from steerfn.values import DataError, Site

NARROW, LOW = 3.6, 2.9
"""Inches of a small figure."""


def strengths(model: Any, tokenizer: Any, presets: Presets, state: State) -> Sweep:
    """The sweep that a state asks for.

    Raises:
        DataError: no vector, or as `sweep`.
    """
    push = state.focused
    if not push.vector:
        raise DataError("There is no vector to try; choose one on the left, or make one in the tab Make.")
    return sweep(
        model,
        tokenizer,
        list(state.prompts),
        {push.vector: presets.get(push.vector)},
        state.alphas,
        sites=None if push.site is None else Site.parse(push.site),
        scope=None if push.scope == "everywhere" else SCOPES[push.scope],
        metrics=list(state.metrics),
        max_new_tokens=state.max_new_tokens,
        seed=state.seed,
        chat=None if state.chat else False,
        do_sample=state.sample,
        progress=False,
    )


def strengths_html(table: Sweep) -> Markup:
    """A sweep as HTML: its figures beside each other, and the texts of each prompt by strength."""
    name = table.configs[0].vector
    figures = [
        _figure(table, metric, f"Mean {metric} by strength of {name}, with its interval") for metric in table.metrics
    ]
    assert table.texts is not None
    by_prompt = zip(table.prompts, zip(*table.texts, strict=True), strict=True)
    texts = [
        (
            prompt,
            Table(
                ["alpha", "text"],
                [[f"{c.alpha:+g}" if c.alpha else "0", t] for c, t in zip(table.configs, row, strict=True)],
            ).html(),
        )
        for prompt, row in by_prompt
    ]
    return render("board/strength.html.j2", figures=figures, texts=texts)


def _figure(table: Sweep, metric: str, alt: str) -> Markup:
    try:
        figure = plot.sweep(table, metric, width=NARROW)
        figure.set_figheight(LOW)
        return picture(figure, alt)
    except DataError as error:  # texts too short for the metric, say; the others are drawn all the same
        return alert(error)
