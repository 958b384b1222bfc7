"""A vector made from contrast texts: what is wrong with them, how good every layer is, and how good the vector is."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from steerfn import datasets, discover, plot
from steerfn.board._pictures import picture
from steerfn.board._state import State
from steerfn.discover import LintReport, Profile, lint_pairs, quality
from steerfn.model import layout, unwrap_model
from steerfn.output import render
from steerfn.values import DataError, SteeringVector

METHODS = ("mean_difference", "pca", "lat", "linear_probe", "lda")
POSITIONS = ("mean", "last", "mean_all", "answer")


def sides_of(state: State) -> tuple[Any, Any]:
    """The positive and the negative texts of a state.

    Raises:
        DataError: a side without texts, or a set that does not ship.
    """
    if state.dataset:
        texts = datasets.load(state.dataset)
        return texts.positive, texts.negative
    if not state.positive or not state.negative:
        raise DataError("Contrast needs two sides: write at least one positive and one negative text, one a line.")
    return list(state.positive), list(state.negative)


def sides_of_file(path: str) -> tuple[str, str]:
    """The positive and the negative texts of a file, one a line.

    Raises:
        DataError: texts that are no lines.
        SteerError: as `datasets.from_file`.
    """
    texts = datasets.from_file(path)
    positive, negative = (_join_lines(side) for side in (texts.positive, texts.negative))
    return positive, negative


def lint(state: State) -> LintReport:
    """The confounds of the texts."""
    return lint_pairs(*sides_of(state))


def profile(model: Any, tokenizer: Any, state: State) -> Profile:
    """How good a direction is at every layer."""
    return discover.layer_profile(
        model, tokenizer, *sides_of(state), method=state.method, position=_position(state), progress=False
    )


def make(model: Any, tokenizer: Any, state: State) -> SteeringVector:
    """The vector, with its quality.

    Raises:
        DataError: as the method.
    """
    if state.method not in METHODS:
        raise DataError(f"The method {state.method!r:.80} is not one of {', '.join(METHODS)}.")
    layer = layout(unwrap_model(model)).n_layers // 2 if state.layer is None else state.layer
    method = getattr(discover, state.method)
    return method(model, tokenizer, *sides_of(state), layer, position=_position(state), quality=True, progress=False)


def profile_html(made: Profile) -> Markup:
    """A layer profile as HTML."""
    best = made.best()
    return picture(plot.layers(made, width=4.8), f"Held-out AUC by layer; the best is {best}")


def vector_html(vector: SteeringVector, remarks: LintReport) -> Markup:
    """A vector with its quality, and the confounds of its texts, as HTML."""
    qualities = [(str(site), each) for site, each in quality(vector).items()]
    return render("board/make.html.j2", vector=str(vector), qualities=qualities) + lint_html(remarks)


def lint_html(remarks: LintReport) -> Markup:
    """The confounds of the texts, as HTML."""
    return render("board/lint.html.j2", findings=list(remarks), examples=remarks.examples)


def _position(state: State) -> str:
    if state.position not in POSITIONS:
        raise DataError(f"The position {state.position!r:.80} is not one of {', '.join(POSITIONS)}.")
    return state.position


def _join_lines(texts: Sequence[Any]) -> str:
    if not all(isinstance(each, str) and len(each.splitlines()) == 1 for each in texts):
        raise DataError(
            "This file holds conversations, or texts of several lines; make its vector with steerfn discover --pairs."
        )
    return "\n".join(texts)
