"""The next token before and after steering: its distribution as bars, and the likeliest at every step as a grid."""

import contextvars
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steerfn.model import Model, Tokenizer
from steerfn.operators import Operator, identity
from steerfn.plot._figure import (
    COLOURS,
    GREY,
    SEQUENTIAL,
    contrasting,
    drawable_text,
    figure,
    finish,
    fitting,
    heading,
    legend,
    lines_of,
    one_axes,
    prompt_text,
    ready,
    tidy,
    token_texts,
    width_of,
)
from steerfn.run import Chat, Text, as_texts, encode, generate, input_device
from steerfn.values import DataError, SteeringVector, positive_int, public
from steerfn.verbs import as_steering, functional


@dataclasses.dataclass(frozen=True, eq=False)
class NextToken:
    """Tokens and their probabilities.

    Attributes:
        ids: tokens, those that gain most first.
        before: their probabilities without the operator, `[tokens]`.
        after: with it.
        divergence: `KL(after || before)` over the whole vocabulary, in nats.
    """

    ids: tuple[int, ...]
    before: np.ndarray
    after: np.ndarray
    divergence: float


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """The likeliest tokens at every step of a generation, with and without an operator.

    Attributes:
        chosen: the tokens that the steered model generated, `[steps]`.
        before: the likeliest tokens without the operator, likeliest first, `[steps, top]`.
        after: with it; both after the same, steered text.
        before_probs: their probabilities, `[steps, top]`.
        after_probs: likewise.
        divergence: `KL(after || before)` at each step, in nats, `[steps]`.
    """

    chosen: np.ndarray
    before: np.ndarray
    after: np.ndarray
    before_probs: np.ndarray
    after_probs: np.ndarray
    divergence: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def is_new(self, step: int, rank: int) -> bool:
        """Whether a token of the steered model is not among the likeliest without steering."""
        return self.after[step, rank] not in self.before[step]


def one_prompt(prompt: Any) -> Text:
    """A single prompt.

    Raises:
        DataError: none, or several.
    """
    prompts = as_texts(prompt, "prompt")
    if len(prompts) != 1:
        raise DataError(f"One prompt is drawn, not {len(prompts)}; make a figure for each.")
    return prompts[0]


def log_probs(model: Any, ids: Sequence[int], op: Any, prompt: int) -> np.ndarray:
    """Log-probabilities of the token after the prompt and after each token beyond it, `[positions, vocabulary]`.

    Args:
        model: any transformers causal LM. Unchanged; contexts that are open on it do not count.
        ids: a prompt's tokens, and what follows them.
        prompt: how many of them are prompt.
    """
    row = torch.tensor([list(ids)], device=input_device(model))
    with torch.no_grad():
        out = functional(model)(op, input_ids=row, attention_mask=torch.ones_like(row), prompt_length=prompt)
    logits = out.logits[0, prompt - 1 :]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).cpu().numpy().astype(np.float64)


def divergence(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """`KL(after || before) = sum_t p_t (log p_t - log q_t)` of log-probabilities, over the last axis, in nats."""
    p = np.exp(after)
    with np.errstate(invalid="ignore"):  # a token that is impossible under both adds nothing
        return np.where(p > 0, p * (after - before), 0.0).sum(-1)


def likeliest(values: np.ndarray, top: int) -> np.ndarray:
    """The tokens of the `top` largest numbers along the last axis, the largest first, ties by their number."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :top]


def next_token(model: Any, tokenizer: Any, prompt: Text, op: Any, top: int, chat: Chat) -> NextToken:
    """The likeliest tokens after a prompt with and without an operator, all those that are among the `top` of either.

    Raises:
        DataError: as `encode`.
        SteerError: as `functional`.
    """
    (ids,) = encode(tokenizer, [prompt], chat)
    before, after = (log_probs(model, ids, each, len(ids))[0] for each in (identity, as_steering(op)))
    both = np.union1d(likeliest(before, top), likeliest(after, top))
    change = np.exp(after[both]) - np.exp(before[both])
    order = both[np.argsort(-change, kind="stable")]
    return NextToken(
        tuple(order.tolist()), np.exp(before[order]), np.exp(after[order]), float(divergence(after, before))
    )


def steps_of(
    model: Any, tokenizer: Any, prompt: Text, op: Any, steps: int, top: int, chat: Chat
) -> tuple[Steps, Sequence[int]]:
    """The likeliest tokens along the steered model's greedy continuation, and the tokens of the prompt.

    The continuation is what `generate` gives; then one pass with the operator and one without read the distributions
    after each of its tokens.

    Raises:
        DataError: as `encode`.
        SteerError: as `generate`.
    """
    op = as_steering(op)
    options = {"max_new_tokens": steps, "chat": chat, "do_sample": False, "num_beams": 1}
    # In a context of its own, so that nothing that the caller has opened steers it as well.
    made = contextvars.Context().run(lambda: generate(model, tokenizer, [prompt], op, **options))
    ids, chosen = made.prompt_token_ids[0], made.token_ids[0]
    whole = [*ids, *chosen[:-1]]
    before, after = (log_probs(model, whole, each, len(ids)) for each in (identity, op))
    first, second = likeliest(before, top), likeliest(after, top)
    probs = np.exp(np.take_along_axis(before, first, -1)), np.exp(np.take_along_axis(after, second, -1))
    return Steps(np.array(chosen), first, second, *probs, divergence(after, before)), ids


BEFORE = "#999999"


@public
def token_probabilities(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Any,
    op: Operator | SteeringVector,
    *,
    top: int = 10,
    chat: Chat = None,
    ax: Any = None,
    title: str | None = None,
    width: float = 6.0,
) -> Any:
    """The distribution of the next token without and with steering, as a pair of bars for each token.

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
        DataError: no prompt or several, a `top` that is not a positive integer, or a `width` that is not a number.
        SteerError: as `functional`, or matplotlib is not installed.

    Example:
        >>> import steerfn as sf
        >>> figure = sf.plot.token_probabilities(model, tokenizer, "I feel so", sf.add(v, 2.0))
        >>> figure.savefig("next.png")
    """
    prompt, top = one_prompt(prompt), positive_int("top", top)
    width = width_of(width, ax)
    tokens = next_token(model, tokenizer, prompt, op, top, chat)
    n = len(tokens.ids)
    made, axes = one_axes(width, 1.35 + 0.29 * n, ax)
    places = np.arange(n)
    looks = ((tokens.before, -0.2, BEFORE, "unsteered"), (tokens.after, 0.2, COLOURS[0], "steered"))
    for values, offset, colour, name in looks:
        axes.barh(places + offset, values, height=0.4, color=colour, label=name)
    names = [drawable_text(text, max(8, int(3 * width)), spaces=True) for text in token_texts(tokenizer, tokens.ids)]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_ylim(n - 0.4, -0.6)
    longest = np.maximum(tokens.before, tokens.after)
    for place, end, change in zip(places, longest, tokens.after - tokens.before, strict=True):
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
        f"Next token after “{drawable_text(prompt_text(prompt), int(10 * width), end=True)}”",
        f"KL(steered || unsteered) = {tokens.divergence:.3g} nats",
        title=title,
        axes=ax,
    )
    legend(made, *axes.get_legend_handles_labels(), axes=ax)
    return finish(made, ax)


CELL, BESIDE = 0.72, 1.2
"""Inches that a column takes, and what stands beside all columns."""


@public
def top_k_changes(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Any,
    op: Operator | SteeringVector,
    *,
    steps: int = 12,
    top: int = 5,
    chat: Chat = None,
    ax: Any = None,
    title: str | None = None,
    width: float | None = None,
) -> Any:
    """The likeliest tokens at every step without and with steering, and the divergence of the two distributions.

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
        DataError: no prompt or several, `steps` or `top` that is not a positive integer, or a `width` that is not a
            number.
        SteerError: as `generate`, or matplotlib is not installed.

    Example:
        >>> import steerfn as sf
        >>> figure = sf.plot.top_k_changes(model, tokenizer, "How was your day?", sf.add(v, 2.0), steps=3)
        >>> figure.savefig("steps.png")
    """
    prompt, steps = one_prompt(prompt), positive_int("steps", steps)
    top = positive_int("top", top)
    if ax is None:
        ready(6.0 if width is None else width)
    else:
        width = width_of(width, ax)
    grid, _ = steps_of(model, tokenizer, prompt, op, steps, top, chat)
    width = max(4.5, 1.6 + CELL * len(grid)) if width is None else width
    ranks = grid.before.shape[1]
    made = figure(width, 2.3 + 0.44 * ranks, ax)
    upper, lower, below = made.subplots(3, 1, sharex=True, height_ratios=(ranks, ranks, 2.2))
    room = (width - BESIDE) / len(grid) - 0.06
    _cells(upper, tokenizer, grid.before, grid.before_probs, grid.chosen, room)
    drawn = _cells(lower, tokenizer, grid.after, grid.after_probs, grid.chosen, room)
    _frames(lower, grid)
    for axes, name in ((upper, "unsteered"), (lower, "steered")):
        axes.set_ylabel(f"Rank, {name}", fontsize=8)
    below.bar(np.arange(len(grid)), grid.divergence, width=0.6, color=COLOURS[0])
    tidy(below)
    below.set_ylim(bottom=0)
    below.set_ylabel("KL (nats)", fontsize=8)
    labels = [fitting(text, room, 7) for text in token_texts(tokenizer, grid.chosen.tolist())]
    below.set_xticks(np.arange(len(grid)), [f"{i + 1}\n{text}" for i, text in enumerate(labels)], fontsize=7)
    label = lines_of("Step, and the token that the steered model generated", width - 1.2)
    below.set_xlabel("\n".join(label), fontsize=9)
    # Beside all three, so that their columns stay one under the other.
    bar = made.colorbar(drawn, ax=[upper, lower, below], fraction=0.03, pad=0.01, aspect=30)
    bar.set_label("Probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    heading(
        made,
        f"Likeliest tokens after “{drawable_text(prompt_text(prompt), int(9 * width), end=True)}” and what follows",
        f"Framed: not among the {ranks} likeliest without steering. Bold: generated.",
        title=title,
    )
    return finish(made)


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


def _frames(axes: Any, grid: Steps) -> None:
    """Draw frames around the tokens that are new among the likeliest."""
    from matplotlib.patches import Rectangle

    for step, rank in np.ndindex(grid.after.shape):
        if grid.is_new(step, rank):
            place = (step - 0.46, rank + 0.55)
            axes.add_patch(Rectangle(place, 0.92, 0.9, fill=False, edgecolor=COLOURS[1], linewidth=1.6))
