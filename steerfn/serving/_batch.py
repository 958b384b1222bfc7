"""One batch of jobs as rows of one `generate`: every row its own steering, sampling, length and end."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn._decoding import greedy
from steerfn._sampling import pick, uniforms
from steerfn._steer import steer
from steerfn._text import input_device, pad_id, padded, text_of
from steerfn.operators import rows
from steerfn.serving._job import Job
from steerfn.serving._refused import RequestError

LEAST = 1e-4
"""A temperature below it is greedy, and a share of probability is no smaller: float32 could not tell."""
BROKEN = (
    "The model's numbers are not finite on this request, which a strength too large for its dtype makes them; pass a "
    "smaller alpha."
)


SHORT = 32
"""Tokens of padding that cost less than a batch of their own."""


def like_lengths(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs in batches whose shortest prompt has half the tokens of the longest or more, the short ones first.

    Rows of one batch are padded to the longest: a long prompt beside many short ones would make each of them as slow
    as itself.
    """
    found: list[list[Job]] = []
    for job in sorted(jobs, key=lambda each: len(each.prompt), reverse=True):
        longest = len(found[-1][0].prompt) if found else 0
        if found and longest - len(job.prompt) <= max(SHORT, longest // 2):
            found[-1].append(job)
        else:
            found.append([job])
    return found[::-1]


def run_batch(
    model: Any, tokenizer: Any, jobs: Sequence[Job], ends: frozenset[int], settings: Mapping[str, Any] | None = None
) -> None:
    """Generate until every job has ended, handing out tokens as they come.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        jobs: a row each.
        ends: the tokens that end a text.
        settings: of transformers' `generate`, besides lengths, ends and sampling: a repetition penalty, say.

    Raises:
        Exception: whatever the model raises; jobs that have not ended may be run again, and go on where they were.
    """
    ids, mask = padded([job.prompt for job in jobs], pad_id(model, tokenizer), "left", input_device(model))
    ops = [job.op for job in jobs]
    steering = steer(model, rows(ops)) if any(op is not None for op in ops) else contextlib.nullcontext()

    with torch.no_grad(), steering:
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            **(settings or {}),
            # Keywords, which alone have precedence over the model's own config: how it samples and where it stops
            # are no part of a request.
            **greedy(),
            max_length=None,
            stop_strings=None,
            max_new_tokens=max(job.max_tokens for job in jobs),
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad_id(model, tokenizer),
            logits_processor=[_Sampling(jobs, ids)],
            stopping_criteria=[_HandOut(jobs, ids.shape[1], ends, functools.partial(text_of, tokenizer))],
        )
    for job in jobs:
        job.end("length")


class _Sampling:
    """Leaves each row one token: the most probable one, or one drawn with the row's own random numbers."""

    def __init__(self, jobs: Sequence[Job], prompt: Tensor) -> None:
        device, self.start = prompt.device, prompt.shape[1]
        steps = max(job.max_tokens for job in jobs)
        wide = torch.float32 if device.type == "mps" else torch.float64
        numbers = torch.stack([uniforms(job.seed, 0, steps) for job in jobs])
        self.numbers = numbers.to(device=device, dtype=wide)
        self.jobs = jobs
        self.temperature = torch.tensor([job.temperature for job in jobs], device=device)[:, None]
        self.top_p = torch.tensor([job.top_p for job in jobs], device=device)[:, None].clamp_min(LEAST)
        self.greedy = self.temperature[:, 0] < LEAST
        self.all_greedy = bool(self.greedy.all())
        self.whole = bool((self.top_p >= 1).all())

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken = scores.isnan().any(-1)
        if bool(broken.any()):
            for job, is_broken in zip(self.jobs, broken.tolist(), strict=True):
                if is_broken:
                    job.end("error", RequestError(BROKEN, param="steering", code="not_finite"))
            scores = scores.masked_fill(broken[:, None], 0.0)
        best = scores.argmax(-1)
        if self.all_greedy:
            chosen = best
        else:
            warm = scores.float() / self.temperature.masked_fill(self.greedy[:, None], 1.0)
            drawn = pick(
                warm if self.whole else nucleus(warm, self.top_p), self.numbers[:, input_ids.shape[1] - self.start]
            )
            chosen = torch.where(self.greedy, best, drawn)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    """The scores of the fewest tokens that have a share `top_p` of the probability together, -inf for the others.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".

    Example:
        >>> import torch
        >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.7]])).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    ordered, index = scores.sort(-1, descending=True)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    return torch.full_like(scores, -torch.inf).scatter(-1, index, ordered.masked_fill(before >= top_p, -torch.inf))


class _HandOut:
    """Hands each row's newest token to its job, and ends the rows whose job has ended."""

    def __init__(
        self, jobs: Sequence[Job], start: int, ends: frozenset[int], decode: Callable[[list[int]], str]
    ) -> None:
        self.jobs, self.start, self.ends, self.decode = jobs, start, ends, decode

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = input_ids.shape[1] - self.start
        for job, token in zip(self.jobs, input_ids[:, -1].tolist(), strict=True):
            # What it has of an earlier attempt is not handed out again.
            if not job.ended and len(job.tokens) < done:
                job.add(token, self.ends, self.decode)
        return torch.tensor([job.ended for job in self.jobs], device=input_ids.device)
