"""Looking inside: the next token, a text coloured by a vector's reading, the push beside the stream."""

from typing import Any

import torch
from markupsafe import Markup

from steerfn import plot
from steerfn.board._pictures import picture
from steerfn.board._presets import Presets
from steerfn.board._state import State
from steerfn.board._steering import operator_of, part_of
from steerfn.output import Table, format_number, render
from steerfn.run import encode, input_device
from steerfn.values import DataError, SteeringVector
from steerfn.verbs import capture

WIDTH = 4.2
"""Inches of a figure, which a telephone shows too."""
MOST = 6
"""Sites of a vector that are drawn."""


def token_texts(tokenizer: Any, text: str) -> list[str]:
    """The tokens of a text, as they are drawn.

    Raises:
        DataError: an empty text.
    """
    return plot.token_texts(tokenizer, encode(tokenizer, [text], False)[0])


def look_html(model: Any, tokenizer: Any, presets: Presets, state: State) -> Markup:
    """The inside of a state's text, as HTML.

    Raises:
        DataError: no text, or more tokens than it has.
    """
    if not state.text.strip():
        raise DataError("There is no text to look at; write one.")
    (ids,) = encode(tokenizer, [state.text], False)
    if not 0 <= state.tokens <= len(ids):
        raise DataError(
            f"The text has {len(ids)} tokens; look at the next token after 1 to {len(ids)}, not {state.tokens}."
        )
    op = operator_of(state.steering, presets.get)
    before = list(ids)[: state.tokens or len(ids)]
    tail = "".join(token_texts(tokenizer, state.text)[: len(before)])[-40:]
    said = f"Next token after {len(before)} of {len(ids)} tokens, “{tail}”"
    chart = plot.token_probabilities(model, tokenizer, before, op, title=said, width=WIDTH)
    push = state.focused
    readings, table = [], None
    if push.vector:
        vector = part_of(push, presets.get(push.vector))
        readings = [
            picture(
                plot.tokens(model, tokenizer, state.text, vector, site, width=WIDTH),
                f"The text, each token coloured by where its state lies along {push.vector} at {site}",
            )
            for site in vector.sites[:MOST]
        ]
        table = pushes(model, tokenizer, state.text, vector, push.alpha).html()
    return render(
        "board/look.html.j2", chart=picture(chart, "The likeliest next tokens without and with steering"),
        readings=readings, table=table, name=push.vector, alpha=push.alpha,
    )  # fmt: skip


def pushes(model: Any, tokenizer: Any, text: str, vector: SteeringVector, alpha: float) -> Table:
    """The norm of `alpha * v` beside the median norm of the stream over a text's tokens, by site."""
    row = torch.tensor(encode(tokenizer, [text], False), device=input_device(model))
    with torch.no_grad():
        _, states = capture(model, vector.sites)(input_ids=row, attention_mask=torch.ones_like(row))
    rows = []
    for site, norm in vector.magnitude.items():
        state = next(each for at, each in states.items() if at.name == site.name)
        stream = float(state.float().norm(dim=-1).median())
        rows.append([site.name, *map(format_number, (abs(alpha) * norm, stream, abs(alpha) * norm / stream))])
    return Table(["site", "|alpha v|", "median |h|", "ratio"], rows, numeric=range(1, 4))
