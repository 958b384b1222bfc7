"""What a case does with a model, steered or not: forward passes, or `generate`."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad

from matrix.case import Case

NEW, PAD, CACHED = 3, 0, 24
"""Tokens that are generated; the pad id; how long static caches are."""

FOLLOW_UP = torch.tensor([7, 8])
"""What the user says in a second turn."""

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"output_logits": True},
    "beams": {"num_beams": 3, "output_scores": True},
    "returned": {"num_beams": 3, "num_return_sequences": 2, "output_scores": True},
    "guided": {"guidance_scale": 1.5, "output_scores": True},
    "guided against": {"guidance_scale": 1.5, "output_scores": True},
}
AGAINST = torch.tensor([[9, 10, 11]])
"""The negative prompt."""

BYSTANDER = torch.arange(5, 12).unsqueeze(0)
"""What a logits processor runs the model on. Without a cache, sequences that others grow inside `generate` are told
apart by their lengths alone, so this one is never one token longer than that of guidance."""


def prompts(case: Case) -> list[Tensor]:
    """The token ids of each row."""
    return [torch.randint(3, 99, (n,), generator=torch.Generator().manual_seed(i)) for i, n in enumerate(case.lengths)]


def padded(rows: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Ids of a batch and their mask."""
    width = max(map(len, rows))
    sides = [(0, width - len(row)) if side == "right" else (width - len(row), 0) for row in rows]
    ids = [pad(row, each, value=PAD) for row, each in zip(rows, sides, strict=True)]
    mask = [pad(torch.ones_like(row), each) for row, each in zip(rows, sides, strict=True)]
    return torch.stack(ids), torch.stack(mask)


def state_of(out: Any) -> Tensor:
    """The logits, or the last hidden state of a backbone."""
    return out.logits if "logits" in out else out.last_hidden_state


def run(case: Case, target: Any, model: Any) -> list[Tensor]:
    """What comes out of a case: `target` is called (or its `generate`), `model` is the transformers model in it."""
    return (forward if case.way == "forward" else generate)(case, target, model)


def forward(case: Case, target: Any, model: Any) -> list[Tensor]:
    """Passes over the prompts, cut where the case says, the cache handed on; the state of every position."""
    ids, mask = padded(prompts(case), case.padding)
    cache, states, start = _cache(case, model), [], 0
    for end in (*case.cuts, case.width):
        passed, seen = ids[:, start:end], mask[:, :end]
        if case.cropped and end != case.width:  # as when a guess of what comes next was wrong
            passed, seen = pad(passed, (0, case.cropped), value=5), pad(seen, (0, case.cropped), value=1)
        given: dict[str, Any] = {"use_cache": case.cache != ""}
        if case.mask:
            given["attention_mask"] = pad(seen, (0, CACHED - seen.shape[1])) if case.mask == "long" else seen
        if case.padding and _takes_positions(model):  # some architectures would count the pads
            given["position_ids"] = _positions(seen)[:, start:]
        if cache is not None:
            given["past_key_values"] = cache
        with torch.no_grad():
            out = target(passed, **given)
        cache = out.get("past_key_values")
        if case.cropped and end != case.width:
            cache.crop(-case.cropped)
        states.append(state_of(out)[:, : end - start])
        start = end
    return [torch.cat(states, 1)]


def generate(case: Case, target: Any, model: Any) -> list[Tensor]:
    """One or two turns of `generate`: new tokens and their scores."""
    options = generation_options(case)
    options |= {"": {"use_cache": False}, "static": {"cache_implementation": "static"}}.get(case.cache, {})
    if case.chunk:
        options["prefill_chunk_size"] = case.chunk
    if case.processor:
        options["logits_processor"] = transformers.LogitsProcessorList([_Bystander(target)])
    if case.decoding == "guided against":
        options["negative_prompt_ids"] = AGAINST.expand(len(case.lengths), -1)
    ids, mask = padded(prompts(case), "left")
    cache = _cache(case, model)
    results: list[Tensor] = []
    if case.turn == "begun":
        given = {"position_ids": _positions(mask)[:, :-1]} if case.padding and _takes_positions(model) else {}
        with torch.no_grad():
            out = target(ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, use_cache=True, **given)
        cache = out.past_key_values
    if case.turn in ("again", "new tokens"):
        first = target.generate(ids, attention_mask=mask, past_key_values=cache, **options)
        results, cache = outcome(case, first, ids.shape[1]), first.past_key_values
        ids = torch.cat([first.sequences, FOLLOW_UP.expand(len(ids), -1)], 1)
        mask = pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        if case.turn == "new tokens":
            ids = ids[:, -len(FOLLOW_UP) - 1 :]  # the last token of the first turn is not in the cache yet
    given = {"attention_mask": mask} if case.mask else {}
    if cache is not None:
        given["past_key_values"] = cache
    if case.embedded:
        embeddings = model.get_input_embeddings()(ids).detach()
        return outcome(case, target.generate(inputs_embeds=embeddings, **given, **options), 0)
    return results + outcome(case, target.generate(ids, **given, **options), ids.shape[1])


def generation_options(case: Case) -> dict[str, Any]:
    """What every `generate` of a case is called with."""
    basic = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": PAD, "return_dict_in_generate": True}
    return basic | OPTIONS[case.decoding]


def outcome(case: Case, out: Any, width: int) -> list[Tensor]:
    """New tokens, and the logits, scores or beam scores that led to them."""
    if case.decoding == "greedy":
        return [out.sequences[:, width:], torch.stack(out.logits, 1)]
    scores = torch.stack(out.scores, 1) if case.decoding.startswith("guided") else out.sequences_scores
    return [out.sequences[:, width:], scores]


class _Bystander(transformers.LogitsProcessor):
    """Runs the model on something else at every token, and leaves the scores alone."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.model(BYSTANDER.expand(len(input_ids), -1))
        return scores


def _cache(case: Case, model: Any) -> Any:
    if case.cache == "StaticCache":
        return transformers.StaticCache(config=model.config, max_cache_len=CACHED)
    return transformers.DynamicCache(config=model.config) if case.cache == "dynamic" else None


def _takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(type(model).forward).parameters


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)
