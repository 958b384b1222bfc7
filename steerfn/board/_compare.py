"""A conversation with and without steering, both sides streaming together."""

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from steerfn.board._presets import Presets
from steerfn.board._state import State
from steerfn.board._steering import operator_of
from steerfn.output import render
from steerfn.run import seed_of_rows, stream_rows
from steerfn.values import DataError


class Exchange(NamedTuple):
    """One turn, and what each side answers."""

    turn: str
    unsteered: str = ""
    steered: str = ""


Exchanges = tuple[Exchange, ...]


def converse(
    model: Any, tokenizer: Any, presets: Presets, state: State, before: Exchanges = ()
) -> Generator[Exchanges, None, None]:
    """The conversation so far, after every token; both sides of a turn are rows of one batch, with the same seed.

    Args:
        state: its turns are asked; a plain prompt is its last one, continued.
        before: the answers that are there, of its first turns.

    Raises:
        DataError: no turn, or as `generate`.
    """
    turns = state.turns if state.chat else state.turns[-1:]
    if not turns or not turns[-1].strip():
        raise DataError("There is no prompt; write one, and send it.")
    op, done = operator_of(state.steering, presets.get), list(before if state.chat else ())
    for turn in turns[len(done) :]:
        prompts = [_prompt(done, side, turn) for side in ("unsteered", "steered")]
        texts = stream_rows(
            model, tokenizer, prompts, [None, op], seed=[seed_of_rows(state.seed)] * 2 if state.sample else None,
            max_new_tokens=state.max_new_tokens, chat=None if state.chat else False, do_sample=state.sample,
        )  # fmt: skip
        done.append(Exchange(turn))
        yield tuple(done)
        try:
            for unsteered, steered in texts:
                done[-1] = Exchange(turn, unsteered, steered)
                yield tuple(done)
        finally:
            texts.close()  # the generation ends with whoever reads it


def exchanges_html(exchanges: Sequence[Exchange], *, writing: bool = False) -> Markup:
    """A conversation as HTML, the two sides beside each other."""
    return render("board/compare.html.j2", exchanges=exchanges, writing=writing)


def _prompt(done: Sequence[Exchange], side: str, turn: str) -> Any:
    """A first turn as a text, which is what `compare` takes; a later one as the conversation of its side."""
    if not done:
        return turn
    messages = [message for each in done for message in (("user", each.turn), ("assistant", getattr(each, side)))]
    return [{"role": role, "content": content} for role, content in [*messages, ("user", turn)]]
