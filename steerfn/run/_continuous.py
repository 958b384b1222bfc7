"""Jobs that join and leave between the forward passes of one batch, each row steered in its own way.

transformers keeps the cache in pages and schedules: which tokens of which rows come next (continuous batching). Its
passes are run here one by one: steered row by row, and each row's next token chosen by the row's own sampler.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steerfn.model import Packing, lay_end_to_end, layout, unwrap_model
from steerfn.operators import add, rows
from steerfn.run._batch import read_prompt, run_batch
from steerfn.run._batch_job import BatchJob
from steerfn.run._decoding import Decoding
from steerfn.run._row_sampler import RowSampler
from steerfn.run._row_sampling import RowSampling
from steerfn.run._text import input_device, text_of
from steerfn.values import ModelError, SteeringVector, resid_post
from steerfn.verbs import Steering

PASS = 512
"""Tokens of one pass: a longer prompt is read in parts, and the other rows go on meanwhile."""
PAGE = 16
"""Tokens of a page of the cache."""
CLOSE = 0.1
"""How far apart probabilities of the trial may be: half precision moves them, wrong steering moves them more."""


class Infected(Exception):
    """A row's numbers are not finite, and attention, in which rows are only masked from each other, spreads them."""


class ContinuousBatch:
    """A batch that rows join and leave.

    Args:
        model: any transformers causal LM that keeps keys and values.
        tokenizer: its tokenizer.
        decoding: as in `run_batch`.
        most_rows: rows that run at once; more wait.
        cache_tokens: tokens of all rows together that the cache holds. Where it is full rows wait, or begin anew.

    Attributes:
        jobs: those that run or wait, by their names in transformers' scheduler.

    Raises:
        ModelError: transformers cannot batch this model so, or this transformers cannot.

    Source: Yu et al. 2022, "Orca" (batches that change between passes); Kwon et al. 2023, "PagedAttention".
    """

    def __init__(self, model: Any, tokenizer: Any, decoding: Decoding, most_rows: int, cache_tokens: int) -> None:
        self.model: Any = unwrap_model(model)
        self.tokenizer, self.decoding = tokenizer, decoding
        self.jobs: dict[str, BatchJob] = {}
        self._samplers: dict[str, Any] = {}
        self._most_rows, self._blocks, self._count = most_rows, -(-cache_tokens // PAGE), 0
        implementation = self.model.config._attn_implementation
        try:
            self._open()
            if self.model.config._attn_implementation != implementation:
                raise ModelError(f"its attention {implementation!r} would have to be exchanged")
            self._try()
        except Exception as error:
            if self.model.config._attn_implementation != implementation:
                self.model.set_attn_implementation(implementation)
            raise ModelError(
                f"This model cannot be batched continuously ({type(error).__name__}: {error}); serve it in batches, "
                "without `continuous`. It takes transformers 5.23 or later, a model that keeps keys and values, "
                'not compiled, loaded with attn_implementation="sdpa" or a flash attention.'
            ) from error

    def _open(self) -> None:
        from transformers import ContinuousBatchingConfig

        self._config = copy.deepcopy(self.model.generation_config)
        # Each row's own sampler chooses, and ends the row.
        self._config.update(**self.decoding.options | {"do_sample": False, "eos_token_id": -1})
        self._manager = self.model.init_continuous_batching(
            self._config,
            ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=self._blocks,
                max_batch_tokens=PASS,
                max_requests_per_batch=self._most_rows,
                allow_block_sharing=False,  # the same prompt is another state under another steering
                use_async_batching=False,  # a row's next token is known before the next pass is planned
                use_cuda_graph=False,
                auto_switch_to_flash=False,
            ),
        )
        self._manager.logit_processor = self
        self._processor = self._manager._create_batch_processor()

    def _try(self) -> None:
        """Compare two tokens of two short rows, one of them steered, with those of a batch."""
        blocks = layout(self.model)
        direction = torch.randn(blocks.d_model, generator=torch.Generator().manual_seed(0))
        op = add(SteeringVector({resid_post[blocks.n_layers // 2]: direction}), 10.0)

        def jobs() -> list[BatchJob]:
            kinds = [([0, 1, 2], op), ([1], None)]
            return [BatchJob(ids, each, 2, RowSampling(), (), lambda _: None, top_logprobs=0) for ids, each in kinds]

        batch, own = jobs(), jobs()
        run_batch(self.model, self.tokenizer, batch, self.decoding)
        for job in own:
            self.add(job)
        while self.jobs:
            self.step()
        for one, other in zip(batch, own, strict=True):
            for a, b in zip(one.logprobs, other.logprobs, strict=True):
                if abs(math.exp(a.logprob) - math.exp(b.logprob)) > CLOSE:
                    raise ModelError("what it gives differs from what a batch gives")
                if a.token != b.token:
                    break

    def add(self, job: BatchJob) -> None:
        """Let a job join before the next pass."""
        read_prompt(self.model, job)
        if not job.ended:
            self._join(job)

    def _join(self, job: BatchJob) -> None:
        name, self._count = str(self._count), self._count + 1
        ids = torch.tensor([job.prompt], device=input_device(self.model))
        self._samplers[name] = self.model._get_logits_processor(
            self._config, input_ids_seq_length=ids.shape[1], logits_processor=[RowSampler([job], ids)]
        )
        self.jobs[name] = job
        self._manager.add_request([*job.prompt, *job.tokens], name)

    def step(self) -> list[BatchJob]:
        """Run one forward pass, in which each row gets a token, or reads a part of its prompt; gives its rows.

        Raises:
            Exception: whatever the model raises; `clear` the batch then. Jobs that have not ended may be run again, and
                go on where they were.
        """
        for name, job in list(self.jobs.items()):
            if job.cancelled or job.ended:
                job.end("cancelled")
                self._leave(name)
        try:
            return self._pass()
        except Infected:
            return self._separate()

    def _pass(self) -> list[BatchJob]:
        if not self._processor.prepare_next_batch():
            return []
        names = [each.state.request_id for each in self._scheduled]
        ran = [self.jobs[name] for name in names]
        with self._steer(ran):
            self._processor._generation_step(self.model)
        self._processor.update_batch()
        for name in names:
            if self.jobs[name].ended:
                self._leave(name)
        return ran

    def _separate(self) -> list[BatchJob]:
        """Run each row alone to its next token, so that what is not finite ends by itself; the others join again."""
        rows = self.clear()
        for job in rows:
            tokens = len(job.tokens)
            self._join(job)
            while not job.ended and len(job.tokens) == tokens:
                self._pass()
            self.clear()
        for job in rows:
            if not job.ended:
                self._join(job)
        return rows

    def clear(self) -> list[BatchJob]:
        """Let go of every row; gives the jobs that have not ended."""
        left = [job for job in self.jobs.values() if not job.ended]
        self.jobs, self._samplers = {}, {}
        self._processor.reset()
        return left

    def _leave(self, name: str) -> None:
        del self.jobs[name], self._samplers[name]
        self._manager.cancel_request(name)
        self._processor.scheduler.block_new_requests = False  # as when one ends by itself: the cache has room again

    @contextlib.contextmanager
    def _steer(self, jobs: list[BatchJob]) -> Iterator[None]:
        """The context of one pass over these jobs."""
        if all(job.op is None for job in jobs):
            yield
            return
        ends = [each.state.position_offset for each in self._scheduled]
        packing = Packing(
            [each.query_length for each in self._scheduled],
            ends,
            [len(job.prompt) for job in jobs],
            lambda: [[*job.prompt, *job.tokens][:end] for job, end in zip(jobs, ends, strict=True)],
            input_device(self.model),
        )
        steering = Steering(self.model, rows([job.op for job in jobs]))
        steering.__enter__()
        try:
            with lay_end_to_end(packing):
                yield
        finally:
            steering.close(quiet=True)  # one pass may well hold no token that a scope selects

    # What transformers asks of a list of logits processors.

    tensors_required, do_processing = 0, True

    def check_kwargs(self, kwargs: Any) -> None:
        """Rows have no arguments there."""

    def fill_defaults(self, tensor: Tensor) -> None:
        """Rows have no arguments there."""

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        """Called with the rows of the next pass, in its order."""
        self._scheduled = requests_in_batch
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, arguments: Tensor) -> Tensor:
        """The scores `[rows, vocabulary]`, of which each row that gets a token has only that one left."""
        names = [each.state.request_id for each in self._scheduled if each.has_new_token]
        if len(self._scheduled) > 1 and bool(scores[: len(names)].isnan().any()):
            raise Infected
        chosen = scores.clone()
        for row, name in enumerate(names):
            job = self.jobs[name]
            ids = torch.tensor([[*job.prompt, *job.tokens]], device=scores.device)
            chosen[row] = self._samplers[name](ids, scores[row : row + 1])[0]
            if not job.ended:
                decode = functools.partial(text_of, self.tokenizer, marks=job.marks)
                job.add(int(chosen[row].argmax()), self.decoding.ends, decode)
        return chosen
