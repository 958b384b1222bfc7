"""Several prompts streamed together: rows of one batch, each steered by its own operator."""

import dataclasses
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from torch import Tensor

from steerfn.run._chat_template import Chat
from steerfn.run._decoding import decoding_of
from steerfn.run._generate import by_prompt, generate_ids
from steerfn.run._in_thread import pieces_of, stop_when
from steerfn.run._seeds import row_seeds
from steerfn.run._stop_strings import End
from steerfn.run._text import as_texts, encode, text_of


class _Rows:
    """A streamer of a whole batch, which transformers' own are not: emits the texts so far after every step."""

    def __init__(self, rows: int, show: Callable[[list[int]], str], emit: Callable[[Any], None]) -> None:
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.show, self.emit, self.first, self.done = show, emit, True, 0

    def put(self, value: Tensor) -> None:
        if self.first:  # the prompts
            self.first, self.batch = False, len(value)
            return
        for row, token in enumerate(value.tolist(), self.done):
            self.ids[row].append(token)
        self.emit(tuple(map(self.show, self.ids)))

    def end(self) -> None:
        self.first, self.done = True, self.done + self.batch


def stream_rows(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    ops: Any = None,
    *,
    seed: int | Sequence[int] | None = None,
    chat: Chat = None,
    max_new_tokens: int | None = None,
    **hf: Any,
) -> Generator[tuple[str, ...], None, None]:
    """The texts of several prompts so far, after every token; the last are those of `generate`.

    Generation runs in a thread of its own, as in `stream`; closing the iterator stops it at the next token.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        prompts: as in `generate`; all run at once.
        ops: an operator or vector for all prompts, or a list with one (or None) for each.
        seed: for sampling, a list with a seed for each prompt, or one for all; see `generate`.
        chat, max_new_tokens, hf: as in `generate`.

    Raises:
        DataError: what `generate` refuses. Errors of the generation are raised where the texts are read.
    """
    decoding = decoding_of(stream_rows, model, tokenizer, hf, chat=chat, max_new_tokens=max_new_tokens)
    texts = as_texts(prompts, "prompts")
    decoding = dataclasses.replace(decoding, seed=row_seeds(seed, len(texts), decoding.hf))
    steering = by_prompt(ops, None, len(texts))
    encoded = encode(tokenizer, texts, decoding.chat)
    end = End(tokenizer, decoding.ends, decoding.stop_strings)

    def show(ids: list[int]) -> str:
        return text_of(tokenizer, end.cut(ids)).rstrip("\ufffd")  # the first bytes of a character

    def work(emit: Callable[[Any], None], stop: threading.Event) -> None:
        more = {"streamer": _Rows(len(texts), show, emit), "stopping_criteria": [stop_when(stop)]}
        ids = generate_ids(
            model, tokenizer, encoded, steering, dataclasses.replace(decoding, options=decoding.options | more)
        )
        emit(tuple(text_of(tokenizer, row) for row in ids))

    return pieces_of(work)
