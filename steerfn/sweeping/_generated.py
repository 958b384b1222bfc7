"""Sweeps of generations: every configuration of every prompt is a row, and rows fill common batches.

Decoding waits for memory, so a batch of many rows takes little longer than one row does.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from steerfn._generate import generate
from steerfn._steer import Steering, refuse_open_rows
from steerfn._text import Text, encode, input_device
from steerfn.operators import Operator, rows
from steerfn.operators._rows import refuse_rows
from steerfn.sweeping._begun import begun

ROWS = {"cpu": 64}
"""Rows of a batch at most, by device: beyond that the matrix products are full, and a batch waits for its longest."""
ROWS_ELSEWHERE = 256
CACHE = 2**31
"""Bytes of keys and values of one batch at most."""


def generated(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    ops: Sequence[Operator | None],
    todo: Sequence[tuple[int, int]],
    *,
    limit: int | None,
    max_new_tokens: int,
    seed: int | None,
    chat: bool | None,
    hf: dict[str, Any],
) -> Iterator[dict[tuple[int, int], str]]:
    """The texts of (operator, prompt) pairs, batch by batch.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: the prompts.
        ops: the operators, None for the unsteered model.
        todo: the pairs.
        limit: rows of a batch; None fits them to memory, and halves them where it runs out.
        max_new_tokens: tokens of a text at most.
        seed: for sampling: prompt `p` is sampled with `seed + p` under every operator.
        chat: as in `generate`.
        hf: anything else that `generate` takes.
    """
    refuse_rows(ops, "this comparison")
    refuse_open_rows(model, "configurations are generated in batches of any order")
    encoded = encode(tokenizer, prompts, chat)
    lengths = [len(ids) for ids in encoded]
    # Prompts of one length share batches: padding is computed, and a prompt's operators differ least in what they do.
    order = sorted(todo, key=lambda pair: (-lengths[pair[1]], pair[1], pair[0]))
    start, most = 0, limit or rows_that_fit(model, max(lengths) + max_new_tokens)
    while start < len(order):
        some = order[start : start + most]
        options = {
            "seed": None if seed is None else [seed + p for _, p in some],
            "chat": chat,
            "max_new_tokens": max_new_tokens,
            "batch_size": len(some),
        }
        rows_of = [prompts[p] for _, p in some], [encoded[p] for _, p in some], [ops[c] for c, _ in some]
        try:
            texts = _texts(model, tokenizer, *rows_of, options, hf)
        except torch.OutOfMemoryError:
            if most == 1 or limit is not None:
                raise
            most //= 2
            continue
        start += len(some)
        yield dict(zip(some, texts, strict=True))


def _texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Text],
    encoded: Sequence[Sequence[int]],
    ops: Sequence[Operator | None],
    options: dict[str, Any],
    hf: dict[str, Any],
) -> Sequence[str]:
    """The text of every row, steered by its own operator; prompts that rows have in common run once."""
    distinct = list(dict.fromkeys(map(tuple, encoded)))
    shared = begun(model, tokenizer, distinct, [distinct.index(tuple(ids)) for ids in encoded], ops, hf)
    if shared is None:
        return generate(model, tokenizer, prompts, ops, **options, **hf).texts
    steered = any(op is not None for op in ops)
    with Steering(model, rows(ops), selections=shared.selections) if steered else contextlib.nullcontext():
        return generate(model, tokenizer, prompts, past_key_values=shared.cache, **options, **hf).texts


def rows_that_fit(model: Any, length: int) -> int:
    """Rows of a batch: as many as have room for their keys and values."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, heads = getattr(config, "num_hidden_layers", 32), getattr(config, "num_attention_heads", 32)
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 4096) // heads
    size = torch.empty(0, dtype=getattr(model, "dtype", torch.float32)).element_size()
    row = 2 * layers * kept * width * size * length
    device = input_device(model)
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CACHE
    return max(1, min(ROWS.get(device.type, ROWS_ELSEWHERE), room // max(row, 1)))
