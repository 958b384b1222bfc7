"""Greedy generation, steered, in padded batches, and by hand without a cache."""

import warnings

import torch
from steering import token_ids

import steerfn as sf


def generate(model, ids, mask=None, n=6, **options):
    options = {
        "do_sample": False,
        "max_new_tokens": n,
        "attention_mask": torch.ones_like(ids) if mask is None else mask,
    } | options
    return model.generate(ids, **options)[:, ids.shape[1] :]


def steered(model, op, ids, mask=None, n=6, **options):
    with sf.steer(model, op):
        return generate(model, ids, mask, n, **options)


def by_hand(model, op, ids, n=6):
    """Greedy decoding without a cache over the pure view."""
    f, length = sf.functional(model), ids.shape[1]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The scope", sf.SteerWarning)  # nothing is generated yet at the first step
        for _ in range(n):
            next_id = f(op, ids, prompt_length=length, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, next_id], 1)
    return ids[:, length:]


def ragged(lengths=(6, 3, 5, 4), seed=5):
    """Left-padded ids, their mask, and the rows without padding."""
    rows = [token_ids(1, n, seed + i) for i, n in enumerate(lengths)]
    width = max(lengths)
    ids = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(row), (width - row.shape[1], 0)) for row in rows])
    return ids, mask, rows


def padded(rows, side):
    width = max(row.shape[1] for row in rows)
    amounts = [width - row.shape[1] for row in rows]
    pads = [(n, 0) if side == "left" else (0, n) for n in amounts]
    ids = torch.cat([torch.nn.functional.pad(row, pad) for row, pad in zip(rows, pads, strict=True)])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)])
    return ids, mask


def manual_decode(model, ids, n=6, mask=None, step_mask=True):
    """Greedy decoding by hand, with the cache handed on."""
    found, given, cache = [], ids, None
    with torch.no_grad():
        for _ in range(n):
            options = {}
            if mask is not None:
                options = {
                    "attention_mask": mask,
                    "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)[:, -given.shape[1] :],
                }
            out = model(given, past_key_values=cache, use_cache=True, **options)
            given, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            mask = None if mask is None else torch.cat([mask, torch.ones_like(given)], 1)
            found.append(given)
    return torch.cat(found, 1)
