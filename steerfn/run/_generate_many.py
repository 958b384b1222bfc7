"""Sweeps of generations: every configuration of every prompt is a row, and rows fill common batches.

Decoding waits for memory, so a batch of many rows takes little longer than one row does.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from steerfn.operators import Operator, refuse_rows, rows
from steerfn.run._budget import Budget
from steerfn.run._decoding import Decoding
from steerfn.run._generate import generate_ids
from steerfn.run._shared_prompts import prefill
from steerfn.run._text import check_ids, input_device, text_of
from steerfn.verbs import Steering, refuse_open_rows

ROWS = {"cpu": 64}
"""Rows of a batch at most, by device: beyond that the matrix products are full, and a batch waits for its longest."""
ROWS_ELSEWHERE = 256
CACHE = 2**31
"""Bytes of keys and values of one batch at most."""


def generate_many(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    ops: Sequence[Operator | None],
    todo: Sequence[tuple[int, int]],
    decoding: Decoding,
) -> Iterator[dict[tuple[int, int], str]]:
    """The texts of (operator, prompt) pairs, batch by batch.

    Args:
        decoding: how. Its batch size is rows at once; None fits them to memory, and halves them where it runs out.
            Where it samples, prompt `p` is sampled with `seed + p` under every operator.
    """
    refuse_rows(ops, "this comparison")
    refuse_open_rows(model, "configurations are generated in batches of any order")
    check_ids(model, prompts)
    lengths = [len(ids) for ids in prompts]
    # Prompts of one length share batches: padding is computed, and a prompt's operators differ least in what they do.
    order = sorted(todo, key=lambda pair: (-lengths[pair[1]], pair[1], pair[0]))
    longest, limit, seed = max(lengths), decoding.batch_size, decoding.seed if decoding.sampled else None
    assert not isinstance(seed, tuple)

    def texts_of(some: Sequence[tuple[int, int]]) -> Sequence[str]:
        seeds = None if seed is None else tuple(seed + p for _, p in some)
        row_decoding = dataclasses.replace(decoding, seed=seeds, batch_size=len(some))
        return _texts(model, tokenizer, [prompts[p] for _, p in some], [ops[c] for c, _ in some], row_decoding)

    def together(some: Sequence[tuple[int, int]]) -> int:
        return next(decoding.batches([lengths[p] for _, p in some], len(some))).stop

    budget = Budget(limit, rows_that_fit(model, longest + decoding.new_tokens(longest)))
    for some, texts in budget.run(order, texts_of, together=together):
        yield dict(zip(some, texts, strict=True))


def _texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    ops: Sequence[Operator | None],
    decoding: Decoding,
) -> list[str]:
    """The text of every row, steered by its own operator; prompts that rows have in common run once."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    shared = prefill(model, tokenizer, distinct, [distinct.index(tuple(ids)) for ids in prompts], ops, decoding)
    if shared is None:
        return [text_of(tokenizer, ids) for ids in generate_ids(model, tokenizer, prompts, list(ops), decoding)]
    decoding = dataclasses.replace(decoding, options=decoding.options | {"past_key_values": shared.cache})
    steered = any(op is not None for op in ops)
    with Steering(model, rows(ops), selections=shared.selections) if steered else contextlib.nullcontext():
        return [text_of(tokenizer, ids) for ids in generate_ids(model, tokenizer, prompts, None, decoding)]


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
