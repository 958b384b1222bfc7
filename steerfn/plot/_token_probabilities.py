"""The distribution of the next token before and after steering, as bars."""

from typing import Any

import numpy as np

from steerfn._chat_template import Chat
from steerfn.plot._figure import COLOURS, finished, heading, legend, lines_of, one_axes, tidy, width_of
from steerfn.plot._labels import prompt_text, shown, token_texts
from steerfn.plot._next_token import counted, next_token, one_prompt

BEFORE = "#999999"


def token_probabilities(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    op: Any,
    *,
    top: int = 10,
    chat: Chat = None,
    ax: Any = None,
    title: str | None = None,
    width: float = 6.0,
) -> Any:
    """What the model would say next, without and with steering: a pair of bars for each token.

    The tokens are the `top` likeliest without steering and the `top` likeliest with it, sorted by the change of their
    probability, which is written beside them. The title gives `KL(steered || unsteered)` over the whole vocabulary.
    Spaces are shown as "·", line breaks as "⏎".

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        prompt: a text or a conversation.
        op: an operator, or a vector, which means `add(vector)`.
        top: how many of the likeliest tokens of either.
        chat: True puts the prompt into the chat template; None (default) does so where there is one.
        ax: an axes of yours to draw in.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        DataError: no prompt or several, a `top` or `width` that is none.
        SteerError: as `functional`, or matplotlib is not installed.

    Example:
        >>> import steerfn as sf
        >>> sf.plot.token_probabilities(model, tokenizer, "I feel so", sf.add(v, 2.0))  # doctest: +SKIP
    """
    asked, top = one_prompt(prompt), counted(top, "top is a number of tokens")
    width = width_of(width, ax)
    found = next_token(model, tokenizer, asked, op, top, chat)
    n = len(found.ids)
    made, axes = one_axes(width, 1.35 + 0.29 * n, ax)
    places = np.arange(n)
    looks = ((found.before, -0.2, BEFORE, "unsteered"), (found.after, 0.2, COLOURS[0], "steered"))
    for values, offset, colour, name in looks:
        axes.barh(places + offset, values, height=0.4, color=colour, label=name)
    names = [shown(text, max(8, int(3 * width)), spaces=True) for text in token_texts(tokenizer, found.ids)]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_ylim(n - 0.4, -0.6)
    longest = np.maximum(found.before, found.after)
    for place, end, change in zip(places, longest, found.after - found.before, strict=True):
        axes.annotate(
            f"{change:+.2g}", (end, place), (3, 0), textcoords="offset points", va="center", fontsize=7, color="#333333"
        )
    axes.set_xlim(0, longest.max() * (1 + 0.9 / width))  # room for the last number
    tidy(axes, "x")
    axes.tick_params(axis="y", length=0)
    label = lines_of("Probability of the next token (numbers: change)", width - 1.2)
    axes.set_xlabel("\n".join(label), fontsize=9)
    heading(
        made,
        f"Next token after “{shown(prompt_text(asked), int(10 * width), end=True)}”",
        f"KL(steered || unsteered) = {found.divergence:.3g} nats",
        title=title,
        axes=ax,
    )
    legend(made, *axes.get_legend_handles_labels(), axes=ax)
    return finished(made, ax)
