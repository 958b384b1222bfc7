"""Text out of a steered model: `generate` for batches, `stream` piece by piece."""

import contextlib
import contextvars
import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn._errors import DataError
from steerfn._numbers import plain_number
from steerfn._sampling import ByRow
from steerfn._steer import STREAM, as_steering, refuse_open_rows, steer
from steerfn._text import AS_WRITTEN, Text, as_texts, encode, input_device, pad_id, padded, text_of
from steerfn.operators import Operator, rows
from steerfn.operators._rows import of_row, row_count

ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
"""What makes transformers decode with an assistant, which takes one prompt at a time."""


@dataclasses.dataclass(frozen=True)
class Generations:
    """What `generate` returns: for each prompt (times `num_return_sequences`), its continuation.

    Attributes:
        prompts: the prompts as given.
        texts: the generated texts, without the prompt and without special tokens.
        token_ids: the generated token ids, up to and including the end of text.
        prompt_token_ids: the token ids of each prompt as the model got them.
    """

    prompts: tuple[Text, ...]
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    prompt_token_ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __getitem__(self, index: Any) -> Any:
        return self.texts[index]

    def __str__(self) -> str:
        copies = len(self.texts) // max(1, len(self.prompts))
        return "\n".join(f"{self.prompts[i // copies]!s}\n  -> {text}" for i, text in enumerate(self.texts))


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    op: Any = None,
    *,
    max_new_tokens: int = 40,
    seed: int | Sequence[int] | None = None,
    chat: bool | None = None,
    batch_size: int = 16,
    **hf: Any,
) -> Generations:
    """Generate from prompts, steered or not; every prompt may have its own operator.

    Prompts are padded on the left here, whatever the tokenizer's side; neither the tokenizer nor the generation
    config changes. Greedy unless the model's generation config or `do_sample=True` says otherwise. Beam search, beam
    sampling and `num_return_sequences` steer every sequence of a prompt by that prompt's operator; assisted decoding
    (`assistant_model`, `prompt_lookup_num_tokens`, `assistant_early_exit`) takes the prompts one by one.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        prompts: a text, a conversation, or a list of either.
        op: an operator or vector for all prompts, or a list with one (or None) for each. Of an operator that holds a
            `[batch]` strength (or `rows`) each prompt gets its own, whatever `batch_size`.
        max_new_tokens: tokens to generate at most.
        seed: for sampling: the same call gives the same texts, and torch's random state stays as it was. A list
            gives each prompt a seed of its own: its text then depends neither on the other prompts nor on
            `batch_size` (beyond rounding), and each of its `num_return_sequences` has its own random numbers.
        chat: True puts prompts into the chat template; None (default) does so where there is one.
        batch_size: prompts at once.
        hf: anything else that transformers' `generate` takes.

    Raises:
        DataError: no prompts, an empty one, another number of operators or seeds than prompts, or a seed for each
            prompt with beams or assisted decoding.
        SteerError: as `steer`.

    Example:
        >>> import steerfn as sf
        >>> sf.generate(model, tokenizer, "How was your day?", sf.add(v, 2.0)).texts  # doctest: +SKIP
        >>> sf.generate(model, tokenizer, prompts, [sf.add(v), None], seed=[1, 1], do_sample=True)  # doctest: +SKIP
    """
    found = as_texts(prompts, "prompts")
    ops = by_prompt(op, len(found))
    batch_size = as_count("batch_size is a number of prompts", batch_size)
    max_new_tokens = as_count("max_new_tokens is a number of tokens", max_new_tokens)
    seeds = _seeds(seed, len(found), hf)
    if any(hf.get(name) is not None for name in ASSISTED):
        batch_size = 1
    if len(found) > batch_size:
        refuse_open_rows(model, f"sf.generate takes these {len(found)} prompts {batch_size} at a time")
    encoded = encode(tokenizer, found, chat)
    ends = ends_of(model, tokenizer, hf)
    texts: list[str] = []
    ids: list[tuple[int, ...]] = []
    for start in range(0, len(found), batch_size):
        part = slice(start, start + batch_size)
        batch, mask = padded(encoded[part], pad_id(model, tokenizer), "left", input_device(model))
        steering = ops[part] if isinstance(ops, list) else ops
        options = {"pad_token_id": pad_id(model, tokenizer), "max_new_tokens": max_new_tokens, **hf}
        if isinstance(seeds, list):
            options["custom_generate"] = ByRow(seeds[part], hf.get("assistant_model"), hf.get("streamer"))
        with _seeded(model, seeds + start if isinstance(seeds, int) else None), _steered(model, steering):
            out = model.generate(input_ids=batch, attention_mask=mask, **options)
        new = (out if isinstance(out, Tensor) else out.sequences)[:, batch.shape[1] :]
        for row in new.tolist():
            kept = _until_end(row, ends)
            ids.append(tuple(kept))
            texts.append(text_of(tokenizer, kept))
    return Generations(tuple(found), tuple(texts), tuple(ids), tuple(map(tuple, encoded)))


def as_count(what: str, count: Any) -> int:
    """A whole number from 1.

    Raises:
        DataError: something else; `what` describes it.
    """
    count = plain_number(count)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"{what} from 1, not {count!r}.")
    return count


def by_prompt(op: Any, prompts: int) -> Any:
    """One steering for all prompts, or a list with one for each.

    An operator that holds one strength for each row holds one for each prompt, whatever the batches.

    Raises:
        DataError: another number of operators or strengths than prompts.
    """
    if op is None or isinstance(op, (Operator, str)) or not isinstance(op, Sequence):
        op = None if op is None else as_steering(op)
        rows_held = None if op is None else row_count(op)
        if rows_held is None:
            return op
        if rows_held != prompts:
            raise DataError(
                f"There are {prompts} prompts, but the operator holds one strength or operator for each of {rows_held} "
                "rows; pass one for each prompt, or a single one."
            )
        return [of_row(op, p) for p in range(prompts)]
    if len(op) != prompts:
        raise DataError(
            f"There are {prompts} prompts but {len(op)} operators; pass one for each (None for unsteered), "
            "or a single one."
        )
    return [None if each is None else as_steering(each) for each in op]


def _seeds(seed: Any, prompts: int, hf: dict[str, Any]) -> int | list[int] | None:
    """One seed for all prompts, or a list with one for each."""
    seed = plain_number(seed)
    if seed is None or isinstance(seed, str) or not isinstance(seed, Sequence):
        return None if seed is None else _seed(seed)
    if len(seed) != prompts:
        raise DataError(f"There are {prompts} prompts but {len(seed)} seeds; pass one for each, or a single one.")
    if hf.get("custom_generate") is not None:
        raise DataError("seed=[...] does not reach the sampling of custom_generate; pass one int as the seed.")
    return [_seed(each) for each in seed]


def _seed(seed: Any) -> int:
    seed = plain_number(seed)
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise DataError(f"A seed is an int from -2**63 to 2**64 - 1, not {seed!r}.")
    return seed


def _steered(model: Any, ops: Any) -> Any:
    if isinstance(ops, list):
        ops = None if all(op is None for op in ops) else rows(ops)
    return contextlib.nullcontext() if ops is None else steer(model, ops)


@contextlib.contextmanager
def _seeded(model: Any, seed: int | None) -> Iterator[None]:
    """Seed torch for the time of a call, and put its random state back afterwards."""
    if seed is None:
        yield
        return
    device = input_device(model)
    with torch.random.fork_rng(
        [device] if device.type != "cpu" else [], device_type=device.type if device.type != "cpu" else "cuda"
    ):
        torch.manual_seed(seed)
        yield


def ends_of(model: Any, tokenizer: Any, hf: dict[str, Any]) -> set[int]:
    """The tokens that end a text."""
    config = getattr(model, "generation_config", None)
    found = hf.get("eos_token_id", getattr(config, "eos_token_id", None))
    found = getattr(tokenizer, "eos_token_id", None) if found is None else found
    return set(found) if isinstance(found, (list, tuple, set)) else set() if found is None else {int(found)}


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: end + 1]


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    op: Any = None,
    *,
    max_new_tokens: int = 40,
    seed: int | None = None,
    chat: bool | None = None,
    **hf: Any,
) -> Iterator[str]:
    """Generate from one prompt and hand out the text piece by piece.

    Generation runs in a thread of its own, in which the steering is opened, so it does not matter which thread
    reads the pieces; contexts that are open in the calling thread hold there too. Closing the iterator stops the
    generation.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        prompt: a text or a conversation.
        op: an operator or vector.
        max_new_tokens: tokens to generate at most.
        seed: for sampling; torch's random state is shared by all threads, so it is not restored here.
        chat: as in `generate`.
        hf: anything else that transformers' `generate` takes.

    Raises:
        DataError: no prompt. Errors of the generation are raised where the pieces are read.

    Example:
        >>> import steerfn as sf
        >>> for piece in sf.stream(model, tokenizer, "Tell me a story.", sf.add(v)):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
    """
    texts = as_texts(prompt, "prompt")
    if len(texts) != 1:
        raise DataError(f"stream takes one prompt, not {len(texts)}; use generate for several.")
    seed = None if seed is None else _seed(seed)
    ids, mask = padded(encode(tokenizer, texts, chat), pad_id(model, tokenizer), "left", input_device(model))
    steering = None if op is None else as_steering(op)
    options = {"pad_token_id": pad_id(model, tokenizer), "max_new_tokens": max_new_tokens, **hf}
    return _pieces(model, tokenizer, ids, mask, steering, seed, options)


def _pieces(
    model: Any, tokenizer: Any, ids: Tensor, mask: Tensor, steering: Any, seed: int | None, options: dict[str, Any]
) -> Iterator[str]:
    from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

    pieces: queue.Queue[Any] = queue.Queue()
    stop = threading.Event()

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                pieces.put(text)

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), stop.is_set(), dtype=torch.bool, device=input_ids.device)

    def run() -> None:
        end: Any = None
        try:
            if seed is not None:
                torch.manual_seed(seed)
            criteria = StoppingCriteriaList([Stop(), *options.pop("stopping_criteria", [])])
            streamer = Streamer(tokenizer, skip_prompt=True, **AS_WRITTEN)
            with torch.no_grad(), _steered(model, steering):
                model.generate(
                    input_ids=ids, attention_mask=mask, streamer=streamer, stopping_criteria=criteria, **options
                )
        except BaseException as error:  # raised where the pieces are read
            end = error
        pieces.put((end,))

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name=STREAM, daemon=True)
    thread.start()
    try:
        while not isinstance(piece := pieces.get(), tuple):
            yield piece
        if piece[0] is not None:
            raise piece[0]
    finally:
        stop.set()
        thread.join()
