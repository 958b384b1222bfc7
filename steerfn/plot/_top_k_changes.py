"""The likeliest tokens before and after steering at every step of a generation, as a grid."""

from typing import Any

import numpy as np

from steerfn._chat_template import Chat
from steerfn.plot._figure import (
    COLOURS,
    GREY,
    SEQUENTIAL,
    contrasting,
    figure,
    finished,
    heading,
    lines_of,
    ready,
    tidy,
    width_of,
)
from steerfn.plot._labels import fitting, prompt_text, shown, token_texts
from steerfn.plot._next_token import Steps, counted, one_prompt, steps_of

CELL, BESIDE = 0.72, 1.2
"""Inches that a column takes, and what stands beside all columns."""


def top_k_changes(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    op: Any,
    *,
    steps: int = 12,
    top: int = 5,
    chat: Chat = None,
    ax: Any = None,
    title: str | None = None,
    width: float | None = None,
) -> Any:
    """How steering changes what is likely at every step: the `top` tokens without it, with it, and their divergence.

    The columns are the steps of the steered model's greedy continuation, whose tokens are written below. Both
    distributions of a column are those after the same text, the prompt and the steered tokens so far. A cell's colour
    is its token's probability; tokens of the steered model that are not among the `top` without steering are framed,
    the one that was generated is bold. Below: `KL(steered || unsteered)` over the whole vocabulary, in nats.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        prompt: a text or a conversation.
        op: an operator, or a vector, which means `add(vector)`.
        steps: tokens to generate at most; the end of the text ends them.
        top: how many of the likeliest tokens.
        chat: True puts the prompt into the chat template; None (default) does so where there is one.
        ax: an axes of yours, from plt.subplots(), in whose place the plot stands.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches; None fits it to the steps.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        DataError: no prompt or several; `steps`, `top` or `width` that is none.
        SteerError: as `generate`, or matplotlib is not installed.

    Example:
        >>> import steerfn as sf
        >>> sf.plot.top_k_changes(model, tokenizer, "How was your day?", sf.add(v, 2.0), steps=8)  # doctest: +SKIP
    """
    asked, steps = one_prompt(prompt), counted(steps, "steps is a number of tokens")
    top = counted(top, "top is a number of tokens")
    if ax is None:
        ready(6.0 if width is None else width)
    else:
        width = width_of(width, ax)
    found, _ = steps_of(model, tokenizer, asked, op, steps, top, chat)
    width = max(4.5, 1.6 + CELL * len(found)) if width is None else width
    ranks = found.before.shape[1]
    made = figure(width, 2.3 + 0.44 * ranks, ax)
    upper, lower, below = made.subplots(3, 1, sharex=True, height_ratios=(ranks, ranks, 2.2))
    room = (width - BESIDE) / len(found) - 0.06
    _cells(upper, tokenizer, found.before, found.before_probs, found.chosen, room)
    drawn = _cells(lower, tokenizer, found.after, found.after_probs, found.chosen, room)
    _frames(lower, found)
    for axes, name in ((upper, "unsteered"), (lower, "steered")):
        axes.set_ylabel(f"Rank, {name}", fontsize=8)
    below.bar(np.arange(len(found)), found.divergence, width=0.6, color=COLOURS[0])
    tidy(below)
    below.set_ylim(bottom=0)
    below.set_ylabel("KL (nats)", fontsize=8)
    said = [fitting(text, room, 7) for text in token_texts(tokenizer, found.chosen.tolist())]
    below.set_xticks(np.arange(len(found)), [f"{i + 1}\n{text}" for i, text in enumerate(said)], fontsize=7)
    label = lines_of("Step, and the token that the steered model generated", width - 1.2)
    below.set_xlabel("\n".join(label), fontsize=9)
    # Beside all three, so that their columns stay one under the other.
    bar = made.colorbar(drawn, ax=[upper, lower, below], fraction=0.03, pad=0.01, aspect=30)
    bar.set_label("Probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    heading(
        made,
        f"Likeliest tokens after “{shown(prompt_text(asked), int(9 * width), end=True)}” and what follows",
        f"Framed: not among the {ranks} likeliest without steering. Bold: generated.",
        title=title,
    )
    return finished(made)


def _cells(axes: Any, tokenizer: Any, tokens: np.ndarray, probs: np.ndarray, chosen: np.ndarray, room: float) -> Any:
    """The cells of one model, steps across and ranks down, coloured by probability; what was generated is bold."""
    steps, ranks = tokens.shape
    edges = np.arange(steps + 1) - 0.5, np.arange(ranks + 1) + 0.5
    drawn = axes.pcolormesh(*edges, probs.T, cmap=SEQUENTIAL, vmin=0, vmax=1, edgecolors="white", linewidth=1.0)
    for step in range(steps):
        for rank, text in enumerate(token_texts(tokenizer, tokens[step].tolist())):
            colour = contrasting(drawn.cmap(drawn.norm(probs[step, rank])))
            weight = "bold" if tokens[step, rank] == chosen[step] else "normal"
            look = {"ha": "center", "va": "center", "fontsize": 7, "color": colour, "fontweight": weight}
            axes.text(step, rank + 1, fitting(text, room, 7, weight), **look)
    axes.set_ylim(ranks + 0.5, 0.5)
    axes.set_yticks(np.arange(1, ranks + 1))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7, labelbottom=False, colors=GREY)
    return drawn


def _frames(axes: Any, found: Steps) -> None:
    """Frames around what is new."""
    from matplotlib.patches import Rectangle

    for step, rank in np.ndindex(found.after.shape):
        if found.is_new(step, rank):
            place = (step - 0.46, rank + 0.55)
            axes.add_patch(Rectangle(place, 0.92, 0.9, fill=False, edgecolor=COLOURS[1], linewidth=1.6))
