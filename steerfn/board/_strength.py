"""What a strength does, at a glance: a sweep of one vector, a small figure for each metric."""

from typing import Any

from markupsafe import Markup

from steerfn import plot
from steerfn.board._pictures import picture
from steerfn.board._presets import Presets
from steerfn.board._python import focus_of
from steerfn.board._state import State
from steerfn.board._steering import SCOPES
from steerfn.evaluate import Sweep, sweep
from steerfn.output import Table, render
from steerfn.values import DataError, Site

NARROW = 4.2
"""Inches of a small figure."""


def strengths(model: Any, tokenizer: Any, presets: Presets, state: State) -> Sweep:
    """The sweep that a state asks for.

    Raises:
        DataError: no vector, or as `sweep`.
    """
    push = focus_of(state)
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
        picture(
            plot.sweep(table, metric, width=NARROW), f"The mean of {metric} by strength of {name}, with its interval"
        )
        for metric in table.metrics
    ]
    assert table.texts is not None
    texts = [
        (
            prompt,
            Table(
                ["alpha", "text"],
                [[f"{c.alpha:+g}", row[p]] for c, row in zip(table.configs, table.texts, strict=True)],
                long=True,
            ),
        )
        for p, prompt in enumerate(table.prompts)
    ]
    return render("board/strength.html.j2", figures=figures, texts=[(prompt, each.html()) for prompt, each in texts])
