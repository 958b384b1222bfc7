"""A text whose tokens are coloured by where their states lie along a direction."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from steerfn.model import Model, Tokenizer
from steerfn.output import columns, format_number
from steerfn.plot._figure import (
    DIVERGING,
    contrasting,
    drawable_text,
    figure,
    finish,
    inches,
    lines_of,
    token_texts,
    width_of,
)
from steerfn.plot._separation import Projections, projections
from steerfn.run import Chat, as_texts
from steerfn.values import DataError, SteeringVector, public

LETTER, LINE = 0.602 * 8 / 72, 0.2
"""Inches of a letter and a line of DejaVu Sans Mono at 8 points, whose letters are all 0.602 em wide."""
MOST = 2000
LONGEST = 32
MARGIN = 0.12


@public
def tokens(
    model: Model,
    tokenizer: Tokenizer,
    text: Any,
    vector: SteeringVector,
    site: Any = None,
    *,
    centre: float | tuple[Any, Any] | None = None,
    chat: Chat = False,
    ax: Any = None,
    title: str | None = None,
    width: float = 6.0,
) -> Any:
    """A text with each token coloured by `<h_i, v / |v|>`, `h_i` being the state at the site after that token.

    Every token is shown, the special ones that the tokenizer adds included, spaces as "·" and line breaks as "⏎".
    Colours diverge around `centre`, which is white. 0 is not neutral: all states may lie on one side of it. The state
    of a first token is often many times as long as the others (an attention sink), so the colours span the values of
    the tokens after it; where the first lies outside, the colour bar has a tip, and its value is in the title. A state
    depends on the tokens up to its own, and on none after it. Inside a steering context of the calling thread the
    states are the steered ones.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        text: a text or a conversation.
        vector: a vector; its length does not matter.
        site: where to read, an int means `resid_post`; None is the vector's only site.
        centre: what is white: a number; positive and negative texts, between whose tokens' means it then lies; or None,
            which takes the boundary of a vector that is a classifier (`linear_probe`, `lda`), and of others the median
            of this text's tokens, so that colours compare tokens with each other only. The colour bar says which.
        chat: True puts the text into the chat template; None does so where there is one.
        ax: an axes of yours, from plt.subplots(), in whose place the plot stands.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches. The height follows from the text.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        DataError: no text, several, or one of more than 2,000 tokens.
        SiteError: a site that the vector or the model lacks, or none where the vector has several.
        SteerError: not a vector, or matplotlib is not installed.

    Source: after the token heat maps of Zou et al. 2023, "Representation Engineering".

    Example:
        >>> import steerfn as sf
        >>> sf.plot.tokens(model, tokenizer, "The food was great, the service awful.", v).savefig("tokens.png")
    """
    asked = as_texts(text, "text")
    if len(asked) != 1:
        raise DataError(f"One text is drawn, not {len(asked)}; make a figure for each.")
    width = width_of(width, ax)
    states = projections(model, tokenizer, asked[0], vector, site, chat)
    if len(states.ids) > MOST:
        raise DataError(f"The text has {len(states.ids)} tokens, and a figure holds {MOST}; draw a part of it.")
    middle, said_middle = _centre(model, tokenizer, vector, states, centre, chat)
    texts = token_texts(tokenizer, states.ids)
    across = int((width - 2 * MARGIN) / LETTER)
    boxes = wrap_tokens(texts, across)
    off = states.values - middle
    span = float(np.abs(off[1:] if len(off) > 1 else off).max()) or 1.0
    said = [f"Projection on the direction at {states.site}, token by token"] if title is None else [str(title)]
    if title is None and abs(off[0]) > span:
        said.append(f"First token: {format_number(states.values[0])}, beyond the colours")
    lines = [line for each in said if each for line in lines_of(each, width - 2 * MARGIN)]
    unit = lines_of(
        f"<h, v / |v|>, in units of the residual stream; middle colour: {said_middle}, {format_number(middle)}", width
    )
    rows = boxes[-1][0] + 1
    top, body, bottom = 0.17 * len(lines) + 0.15, LINE * rows, 0.46 + 0.15 * len(unit)
    made = figure(width, top + body + bottom, ax)
    if ax is None:
        made.set_layout_engine("none")  # every letter has its place
    height = inches(made)[1]
    body = body if ax is None else max(0.1, min(body, height - top - bottom))
    low = max(0.0, height - top - body - bottom)  # of a place that is higher than the text needs
    made.text(MARGIN / width, 1 - 0.07 / height, "\n".join(lines), va="top", ha="left", fontsize=9)
    axes = made.add_axes((MARGIN / width, (low + bottom) / height, across * LETTER / width, body / height))
    axes.set_axis_off()
    axes.set_xlim(0, across)
    axes.set_ylim(rows, 0)
    drawn = _boxes(axes, boxes, states.values, middle, span)
    below, above = (off.min() < -span), (off.max() > span)
    ends = "both" if below and above else "min" if below else "max" if above else "neither"
    place = made.add_axes((0.15, (low + bottom - 0.22) / height, 0.7, 0.1 / height))
    bar = made.colorbar(drawn, cax=place, orientation="horizontal", extend=ends)
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.outline.set_visible(False)
    bar.set_label("\n".join(unit), fontsize=8, labelpad=1)
    return finish(made)


def wrap_tokens(texts: list[str], across: int) -> list[tuple[int, int, str]]:
    """The row, the first column and the visible text of each token, in rows of `across` letters.

    A row ends where the next token does not fit, and after a line break.
    """
    boxes, row, column = [], 0, 0
    for i, text in enumerate(texts):
        label = drawable_text(text, min(LONGEST, across), spaces=True, kind="monospace")
        wide = max(1, columns(label))
        if column and column + wide > across:
            row, column = row + 1, 0
        boxes.append((row, column, label))
        column += wide
        if text.endswith("\n") and i + 1 < len(texts):
            row, column = row + 1, 0
    return boxes


def _centre(
    model: Any, tokenizer: Any, v: SteeringVector, states: Projections, centre: Any, chat: Chat
) -> tuple[float, str]:
    """The value that is drawn white, and its name.

    Raises:
        DataError: neither a number nor two sides of texts.
    """
    if isinstance(centre, (int, float)) and not isinstance(centre, bool):
        return float(centre), "as asked"
    if centre is not None:
        if not isinstance(centre, tuple) or len(centre) != 2:
            raise DataError(
                f"centre is a number, or a pair of lists of positive and negative texts, not {centre!r:.80}."
            )
        sides = [
            np.concatenate(
                [
                    projections(model, tokenizer, text, v, states.site, chat).values[1:]
                    for text in as_texts(side, "centre")
                ]
            )
            for side in centre
        ]
        if not all(map(len, sides)):
            raise DataError("The texts of centre have a single token each; pass longer ones.")
        return float(np.mean([side.mean() for side in sides])), "between the two sides"
    bias = v.metadata.get("bias")
    if isinstance(bias, Mapping) and isinstance(bias.get(states.site.name), (int, float)):
        return -float(bias[states.site.name]) / float(v.magnitude[states.site]), "the classifier's boundary"
    return float(
        np.median(states.values[1:] if len(states.values) > 1 else states.values)
    ), "the median of these tokens"


def _boxes(axes: Any, boxes: list[tuple[int, int, str]], values: np.ndarray, middle: float, span: float) -> Any:
    """A box of its colour with its text for each token; what the colour bar is made of."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    scale = ScalarMappable(Normalize(middle - span, middle + span), colormaps[DIVERGING])
    for (row, column, label), value in zip(boxes, values, strict=True):
        if math.isnan(value):
            colour = (1.0, 1.0, 1.0, 1.0)
        else:
            colour = scale.to_rgba(value)
        wide = max(1, columns(label))
        axes.add_patch(Rectangle((column, row + 0.06), wide, 0.88, facecolor=colour, edgecolor="white", linewidth=0.8))
        axes.text(
            column + wide / 2, row + 0.53, label, ha="center", va="center", fontsize=8, family="monospace",
            color=contrasting(colour[:3]),
        )  # fmt: skip
    return scale
