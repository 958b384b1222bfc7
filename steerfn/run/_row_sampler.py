"""The next token of every row of a batch, each chosen in its own way."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from steerfn.run._batch_job import BatchJob
from steerfn.run._logprobs import token_logprobs
from steerfn.run._row_sampling import truncate
from steerfn.run._sampling import keep_only, pick, uniforms, wide_dtype
from steerfn.values import ModelError, SteerError

LEAST = 1e-4
"""A temperature below it is greedy, and a share of probability is no smaller: float32 could not tell."""
BROKEN = (
    "The model's numbers are not finite on this request, which a strength too large for its dtype makes them; pass a "
    "smaller alpha."
)


class NotFinite(ModelError):
    """A row whose numbers are not finite."""


class RowSampler:
    """A logits processor that leaves each row one token: the most probable one, or one drawn with its own numbers.

    Args:
        jobs: the rows.
        prompt: the padded token ids that generation begins with.
    """

    def __init__(self, jobs: Sequence[BatchJob], prompt: Tensor) -> None:
        device, self.start = prompt.device, prompt.shape[1]
        self.jobs = jobs
        samplings = [job.sampling for job in jobs]

        def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor([getattr(each, name) for each in samplings], device=device, dtype=dtype)[:, None]

        steps = max(job.max_tokens for job in jobs)
        numbers = torch.stack([uniforms(each.seed, 0, steps) for each in samplings])
        self.numbers = numbers.to(device=device, dtype=wide_dtype(device))
        self.temperature, self.top_p = column("temperature"), column("top_p").clamp_min(LEAST)
        self.min_p, self.top_k = column("min_p"), column("top_k", torch.long)
        self.greedy = self.temperature[:, 0] < LEAST
        self.all_greedy = bool(self.greedy.all())
        self.whole = all(each.top_p >= 1 and not each.top_k and not each.min_p for each in samplings)
        self.changed = [i for i, each in enumerate(samplings) if each.changes_logits]
        self.matchers = {i: job.structure.start() for i, job in enumerate(jobs) if job.structure is not None}
        self.recorded = [i for i, job in enumerate(jobs) if job.top_logprobs is not None]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.start
        scores = raw = self._without_nan(scores)
        if self.changed or self.matchers:
            scores = scores.clone()
        for i in self.changed:
            prompt = torch.tensor(self.jobs[i].prompt, device=input_ids.device)
            scores[i] = self.jobs[i].sampling.change(scores[i], prompt, input_ids[i, self.start :])
        self._apply_structure(input_ids, scores, step)
        chosen = scores.argmax(-1)
        if not self.all_greedy:
            warm = scores.float() / self.temperature.masked_fill(self.greedy[:, None], 1.0)
            if not self.whole:
                warm = truncate(warm, self.top_p, self.top_k, self.min_p)
            chosen = torch.where(self.greedy, chosen, pick(warm, self.numbers[:, step]))
        if self.recorded:
            self._record(raw, chosen, step)
        return keep_only(scores, chosen)

    def _without_nan(self, scores: Tensor) -> Tensor:
        broken = scores.isnan().any(-1)
        if not bool(broken.any()):
            return scores
        for job, is_broken in zip(self.jobs, broken.tolist(), strict=True):
            if is_broken:
                job.end("error", NotFinite(BROKEN))
        return scores.masked_fill(broken[:, None], 0.0)

    def _apply_structure(self, input_ids: Tensor, scores: Tensor, step: int) -> None:
        for i, matcher in self.matchers.items():
            job = self.jobs[i]
            if job.ended:
                continue
            try:
                if step:
                    matcher.consume(int(input_ids[i, -1]))
                allowed = matcher.allowed_tokens(scores.shape[-1])
            except SteerError as error:  # a grammar that grows beyond its bounds ends its own row only
                job.end("error", error)
                continue
            scores[i] = scores[i].masked_fill(~allowed.to(scores.device), -torch.inf)

    def _record(self, raw: Tensor, chosen: Tensor, step: int) -> None:
        some = torch.tensor(self.recorded, device=raw.device)
        most = max(self.jobs[i].top_logprobs or 0 for i in self.recorded)
        for i, one in zip(self.recorded, token_logprobs(raw[some], chosen[some], most), strict=True):
            job = self.jobs[i]
            if not job.ended and len(job.logprobs) == step:  # what it has of an earlier attempt is not recorded again
                job.logprobs.append(dataclasses.replace(one, top=one.top[: job.top_logprobs]))
