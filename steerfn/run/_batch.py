"""Jobs as rows of one `generate`: every row its own steering, sampling, length and end."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.run._batch_job import BatchJob
from steerfn.run._decoding import Decoding
from steerfn.run._generate import steer_rows
from steerfn.run._logprobs import prompt_logprobs
from steerfn.run._row_sampler import RowSampler
from steerfn.run._text import input_device, pad_id, pad_rows, text_of

SHORT = 32
"""Tokens of padding that cost less than a batch of their own."""


def like_lengths(jobs: Sequence[BatchJob]) -> list[list[BatchJob]]:
    """Jobs in batches whose shortest prompt has half the tokens of the longest or more, the short ones first.

    Rows of one batch are padded to the longest: a long prompt beside many short ones would make each of them as slow
    as itself.
    """
    batches: list[list[BatchJob]] = []
    for job in sorted(jobs, key=lambda each: len(each.prompt), reverse=True):
        longest = len(batches[-1][0].prompt) if batches else 0
        if batches and longest - len(job.prompt) <= max(SHORT, longest // 2):
            batches[-1].append(job)
        else:
            batches.append([job])
    return batches[::-1]


def read_prompt(model: Any, job: BatchJob) -> None:
    """Find out the log-probabilities of a job's prompt, if it asks for them; a job that asks for no more has ended."""
    if job.of_prompt and not job.prompt_logprobs:
        job.prompt_logprobs = prompt_logprobs(model, job.prompt, job.op, job.top_logprobs or 0)
    if not job.max_tokens:
        job.end("length")


def run_batch(model: Any, tokenizer: Any, jobs: Sequence[BatchJob], decoding: Decoding) -> None:
    """Generate until every job has ended, emitting text as it comes.

    Args:
        decoding: where texts end, and what all rows share of how the next token is chosen (a repetition penalty, say);
            how many there are and how they are sampled is each row's own.

    Raises:
        Exception: whatever the model raises; jobs that have not ended may be run again, and go on where they were.
    """
    for job in jobs:
        read_prompt(model, job)
    jobs = [job for job in jobs if not job.ended]
    if not jobs:
        return
    ids, mask = pad_rows([job.prompt for job in jobs], pad_id(model, tokenizer), "left", input_device(model))
    with torch.no_grad(), steer_rows(model, [job.op for job in jobs]):
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            # Keywords, which alone have precedence over the model's own config: how it samples and where it stops
            # are no part of a request.
            **decoding.options,
            max_new_tokens=max(job.max_tokens for job in jobs),
            eos_token_id=sorted(decoding.ends) or None,
            pad_token_id=pad_id(model, tokenizer),
            logits_processor=[RowSampler(jobs, ids)],
            stopping_criteria=[_EmitTokens(jobs, ids.shape[1], decoding.ends, tokenizer)],
        )
    for job in jobs:
        job.end("length")


class _EmitTokens:
    """Adds each row's newest token to its job, and ends the rows whose job has ended."""

    def __init__(self, jobs: Sequence[BatchJob], start: int, ends: frozenset[int], tokenizer: Any) -> None:
        self.jobs, self.start, self.ends, self.tokenizer = jobs, start, ends, tokenizer

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = input_ids.shape[1] - self.start
        for job, token in zip(self.jobs, input_ids[:, -1].tolist(), strict=True):
            # What it has of an earlier attempt is not emitted again.
            if not job.ended and len(job.tokens) < done:
                job.add(token, self.ends, functools.partial(text_of, self.tokenizer, marks=job.marks))
        return torch.tensor([job.ended for job in self.jobs], device=input_ids.device)
