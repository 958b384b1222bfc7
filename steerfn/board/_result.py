"""The result of a state: on the page, or as a file without one."""

from typing import Any

from markupsafe import Markup

from steerfn.board._compare import converse, exchanges_html
from steerfn.board._look import look_html
from steerfn.board._make import lint, make, vector_html
from steerfn.board._presets import Presets
from steerfn.board._state import State
from steerfn.board._strength import strengths, strengths_html
from steerfn.output import page, render, write_text


def result_html(model: Any, tokenizer: Any, presets: Presets, state: State) -> Markup:
    """The result of a state, as the page shows it.

    Raises:
        SteerError: as the view.
    """
    if state.view == "compare":
        *_, exchanges = converse(model, tokenizer, presets, state)
        return exchanges_html(exchanges)
    if state.view == "strength":
        return strengths_html(strengths(model, tokenizer, presets, state))
    if state.view == "look":
        return look_html(model, tokenizer, presets, state)
    return vector_html(make(model, tokenizer, state), lint(state))


def write_result(path: Any, model: Any, tokenizer: Any, presets: Presets, state: State) -> None:
    """Write what a state shows as an HTML file; of a vector that is made, the vector too.

    Raises:
        FileError: the file cannot be written.
        SteerError: as the view.
    """
    body = Markup('<div class="board-out board-file">{}</div>').format(result_html(model, tokenizer, presets, state))
    write_text(path, page("steerfn", body, style=render("board/board.css")), "The result")
