"""Text out of a steered model: `generate` for batches, `stream` piece by piece."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.model import Model, Tokenizer, layout, reads_pads, unwrap_model
from steerfn.operators import Operator, of_row, row_count, rows
from steerfn.output import Result, Screen, Section, Table
from steerfn.run._chat_template import Chat
from steerfn.run._decoding import Decoding, decoding_of
from steerfn.run._in_thread import pieces_of, stop_when
from steerfn.run._sampling import ByRow
from steerfn.run._seeds import SEEDS, row_seeds
from steerfn.run._stop_strings import End
from steerfn.run._text import (
    AS_WRITTEN,
    Text,
    as_texts,
    check_ids,
    encode,
    input_device,
    pad_id,
    pad_rows,
    prompt_field,
    shown_prompt,
    text_of,
)
from steerfn.values import DataError, SteeringVector, integer, positive_int, public
from steerfn.verbs import as_optional_steering, as_steering, prepare_operators, refuse_open_rows, steer

ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
"""What makes transformers decode with an assistant, which takes one prompt at a time."""


@dataclasses.dataclass(frozen=True)
class Generations(Result):
    """The continuations that `generate` returns, one for each prompt (times `num_return_sequences`).

    Attributes:
        prompts: the prompts as given.
        texts: the generated texts, without the prompt and without special tokens.
        token_ids: the generated token ids, up to and including the end of text.
        prompt_token_ids: the token ids of each prompt as the model got them.
        decoding: "greedy", "sampled", "beam search" or "beam sampling".
        seed: what it was sampled with; None where it was not seeded.
    """

    prompts: tuple[Text, ...]
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    prompt_token_ids: tuple[tuple[int, ...], ...]
    decoding: str = "greedy"
    seed: int | tuple[int, ...] | None = None

    _title = "Generated texts"
    _what = "The texts"

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __getitem__(self, index: Any) -> Any:
        return self.texts[index]

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each text."""
        return [
            {"prompt": prompt_field(prompt), "text": text, "token_ids": list(ids)}
            for (prompt, text), ids in zip(self._rows(), self.token_ids, strict=True)
        ]

    def _facts(self) -> dict[str, Any]:
        return {"decoding": self.decoding, "seed": self.seed, "prompt_token_ids": self.prompt_token_ids}

    def _sections(self) -> Sequence[Section]:
        rows = [[shown_prompt(prompt), text] for prompt, text in self._rows()]
        return [Table(["prompt", "text"], rows, long=True)]

    def _css(self) -> str:
        return ".steerfn td { white-space: pre-wrap; }"

    def _text(self, screen: Screen) -> str:
        del screen
        return "\n".join(f"{prompt!s}\n  -> {text}" for prompt, text in self._rows())

    def _rows(self) -> list[tuple[Text, str]]:
        copies = len(self.texts) // max(1, len(self.prompts))
        return [(self.prompts[i // copies], text) for i, text in enumerate(self.texts)]


@public
def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Any,
    op: Operator | SteeringVector | Sequence[Operator | SteeringVector | None] | None = None,
    *,
    alpha: Any = None,
    max_new_tokens: int | None = None,
    seed: int | Sequence[int] | None = None,
    chat: Chat = None,
    batch_size: int = 16,
    **hf: Any,
) -> Generations:
    """Generate from prompts, steered or not; every prompt may have its own operator.

    Prompts are padded on the left here, whatever the tokenizer's side; neither the tokenizer nor the generation
    config changes. Decoding is greedy unless `do_sample=True` (or a `generation_config` that says so) asks for
    sampling: a model's own generation config that samples is not a request, but all else in it holds. Beam search, beam
    sampling and `num_return_sequences` steer every sequence of a prompt by that prompt's operator; assisted decoding
    (`assistant_model`, `prompt_lookup_num_tokens`, `assistant_early_exit`) takes the prompts one by one, and so do
    models that read the padding of a batch (RWKV, RecurrentGemma, MiniMax and a few others).

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        prompts: a text, a conversation, token ids (a list of ints or a 1-D tensor), or a list of any of these. A
            conversation that ends with the assistant's message is an answer that was begun, and is continued.
        op: an operator or vector for all prompts, or a list with one (or None) for each. Of an operator that holds a
            `[batch]` strength (or `rows`) each prompt gets its own, whatever `batch_size`.
        alpha: the strength of a vector, as in `steer` (default 1); an operator has its own.
        max_new_tokens: tokens to generate at most; default 40, or what `max_length` or `generation_config` says.
            `max_length` counts the prompt's tokens too; prompts of different lengths then run apart.
        seed: for sampling: the same call gives the same texts, and torch's random state stays as it was. A list
            gives each prompt a seed of its own: its text then depends neither on the other prompts nor on
            `batch_size` (beyond rounding), and each of its `num_return_sequences` has its own random numbers.
        chat: True puts prompts into the chat template; None (default) does so where there is one, and leaves a text
            that begins as the template does (a chat that was rendered already) as it is; False takes texts as they
            are. A mapping is True with switches of the template, `{"enable_thinking": False}`.
        batch_size: prompts at once.
        hf: anything else that transformers' `generate` takes, such as `stop_strings=["\\n"]`, and switches that the
            tokenizer's chat template reads, such as `enable_thinking=False` or `tools=[...]`.

    Raises:
        DataError: no prompts, an empty one, another number of operators or seeds than prompts, a seed for each
            prompt with beams or assisted decoding, a keyword that nothing takes, lengths that contradict each other,
            or sampling options such as `temperature` without `do_sample=True`.
        SteerError: as `steer`.

    Example:
        >>> import steerfn as sf
        >>> texts = sf.generate(model, tokenizer, "How was your day?", v, alpha=2.0, max_new_tokens=8).texts
        >>> sampled = sf.generate(  # the first prompt steered, the second not
        ...     model, tokenizer, prompts, [sf.add(v, 2.0), None], seed=[1, 1], do_sample=True, max_new_tokens=8
        ... )
        >>> [len(ids) for ids in sampled.token_ids]
        [8, 8]
    """
    decoding = decoding_of(
        generate, model, tokenizer, hf, chat=chat, max_new_tokens=max_new_tokens,
        batch_size=positive_int("batch_size", batch_size),
    )  # fmt: skip
    texts = as_texts(prompts, "prompts")
    ops = by_prompt(op, alpha, len(texts))
    decoding = dataclasses.replace(decoding, seed=row_seeds(seed, len(texts), decoding.hf))
    encoded = encode(tokenizer, texts, decoding.chat)
    ids = generate_ids(model, tokenizer, encoded, ops, decoding)
    return Generations(
        tuple(texts), tuple(text_of(tokenizer, row) for row in ids), tuple(map(tuple, ids)), tuple(map(tuple, encoded)),
        decoding.name, decoding.seed,
    )  # fmt: skip


def generate_ids(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], ops: Any, decoding: Decoding
) -> list[list[int]]:
    """The tokens that a model writes after prompts, up to and including the end of each text.

    Args:
        ops: the operator of all prompts, or a list with one for each; None for unsteered.
        decoding: how; its batch size, or all prompts, run at once.

    Raises:
        DataError: token ids that the model has no embedding for, a length that leaves no room for a token, or a
            context that holds one value for each row where prompts do not run at once.
    """
    root, size = unwrap_model(model), decoding.batch_size or len(prompts)
    if ops is not None:  # checked here, and not by every batch
        ready = prepare_operators(ops if isinstance(ops, list) else [ops], root, layout(root))
        ops = ready if isinstance(ops, list) else ready[0]
    if any(decoding.options.get(name) is not None for name in ASSISTED) or reads_pads(root):
        size = 1
    if len(prompts) > size:
        refuse_open_rows(model, f"sf.generate takes these {len(prompts)} prompts {size} at a time")
    check_ids(model, prompts)
    lengths, seed = list(map(len, prompts)), decoding.seed
    decoding.new_tokens(max(lengths))  # fails before anything runs
    end = End(tokenizer, decoding.ends, decoding.stop_strings)
    generated: list[list[int]] = []
    for part in decoding.batches(lengths, size):
        inputs = _inputs(model, tokenizer, prompts[part], end, decoding)
        if isinstance(seed, tuple):
            inputs["custom_generate"] = ByRow(seed[part], inputs.get("assistant_model"), inputs.get("streamer"))
        seeded = _seed_torch(model, seed + part.start if isinstance(seed, int) else None)
        with seeded, steer_rows(model, ops[part] if isinstance(ops, list) else ops):
            out = model.generate(**inputs)
        new = (out if isinstance(out, Tensor) else out.sequences)[:, inputs["input_ids"].shape[1] :]
        generated += [end.cut(row) for row in new.tolist()]
    return generated


def _inputs(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], end: End, decoding: Decoding
) -> dict[str, Any]:
    """The keywords of `model.generate` for a batch of prompts, padded on the left."""
    pad = pad_id(model, tokenizer)
    ids, mask = pad_rows(prompts, pad, "left", input_device(model))
    start, criteria = ids.shape[1], decoding.options.get("stopping_criteria")
    return {
        "pad_token_id": pad,
        **decoding.options,
        "input_ids": ids,
        "attention_mask": mask,
        "max_new_tokens": decoding.new_tokens(start),
        "stopping_criteria": end.criteria(start, criteria),
    }


def by_prompt(op: Any, alpha: Any, prompts: int) -> Any:
    """One steering for all prompts, or a list with one for each.

    An operator that holds one strength for each row holds one for each prompt, whatever the batches.

    Raises:
        DataError: another number of operators or strengths than prompts.
    """
    if op is None or isinstance(op, (Operator, str)) or not isinstance(op, Sequence):
        op = as_optional_steering(op, alpha)
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
    return [None if each is None else as_steering(each, alpha) for each in op]


def steer_rows(model: Any, ops: Any) -> Any:
    """The context in which every row is steered by its own operator, or all of them by one; None for unsteered."""
    if isinstance(ops, list):
        ops = None if all(op is None for op in ops) else rows(ops)
    return contextlib.nullcontext() if ops is None else steer(model, ops)


@contextlib.contextmanager
def _seed_torch(model: Any, seed: int | None) -> Iterator[None]:
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


@public
def stream(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Any,
    op: Operator | SteeringVector | None = None,
    *,
    alpha: Any = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    chat: Chat = None,
    **hf: Any,
) -> Iterator[str]:
    """Generate from one prompt and hand out the text piece by piece.

    Generation runs in a thread of its own, in which the steering is opened, so it does not matter which thread
    reads the pieces; contexts that are open in the calling thread hold there too. Closing the iterator stops the
    generation. Decoding is greedy unless `do_sample=True` asks for sampling, as in `generate`.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        prompt: a text, a conversation or token ids, as in `generate`.
        op: an operator or vector.
        alpha: the strength of a vector (default 1).
        max_new_tokens: tokens to generate at most, as in `generate`.
        seed: for sampling; torch's random state is shared by all threads, so it is not restored here.
        chat: as in `generate`.
        hf: as in `generate`.

    Raises:
        DataError: no prompt, or keywords that `generate` refuses. Errors of the generation are raised where the pieces
            are read.

    Example:
        >>> import steerfn as sf
        >>> pieces = sf.stream(model, tokenizer, "Tell me a story.", sf.add(v), max_new_tokens=8)
        >>> text = "".join(pieces)  # or print each as it comes
        >>> text == sf.generate(model, tokenizer, "Tell me a story.", v, max_new_tokens=8).texts[0]
        True
    """
    decoding = decoding_of(stream, model, tokenizer, hf, chat=chat, max_new_tokens=max_new_tokens)
    texts = as_texts(prompt, "prompt")
    if len(texts) != 1:
        raise DataError(f"stream takes one prompt, not {len(texts)}; use generate for several.")
    seed = None if seed is None else integer("seed", seed, *SEEDS)
    rows = encode(tokenizer, texts, decoding.chat)
    check_ids(model, rows)
    end = End(tokenizer, decoding.ends, decoding.stop_strings)
    inputs = _inputs(model, tokenizer, rows, end, decoding)
    return _pieces(model, tokenizer, inputs, as_optional_steering(op, alpha), seed)


def _pieces(model: Any, tokenizer: Any, inputs: dict[str, Any], steering: Any, seed: int | None) -> Iterator[str]:
    from transformers import StoppingCriteriaList, TextStreamer

    def work(emit: Callable[[str], None], stop: threading.Event) -> None:
        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    emit(text)

        if seed is not None:
            torch.manual_seed(seed)
        criteria = StoppingCriteriaList([stop_when(stop), *inputs["stopping_criteria"]])
        streamer = Streamer(tokenizer, skip_prompt=True, **AS_WRITTEN)
        with torch.no_grad(), steer_rows(model, steering):
            model.generate(**inputs | {"streamer": streamer, "stopping_criteria": criteria})

    return pieces_of(work)
