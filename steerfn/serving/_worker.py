"""The one thread that runs the model: it takes what waits and runs it as rows of batches.

A running request has its jobs, what the worker says of them, and the ways in which it can end early.
"""

import asyncio
import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import torch

from steerfn.run import BatchJob, ContinuousBatch, Decoding, NotFinite, input_device, like_lengths, run_batch
from steerfn.serving._limits import Limits
from steerfn.serving._request_error import RequestError

log = logging.getLogger("steerfn.serving")

IDLE = 10.0
"""Seconds without a request after which the model is tried, so that `health` speaks of now."""
RETRY = 1.0
"""The same while it fails."""
STUCK = 60.0
"""Seconds that a batch may go on beyond the time of its requests, whose rows end at the next token."""


class Worker:
    """Runs jobs until it is closed.

    Args:
        model: the model; only this thread runs it.
        tokenizer: its tokenizer.
        limits: how many rows wait and run.
        decoding: how the model decodes; see `run_batch`.
        ran: called after each batch, or pass, with its rows and seconds.
        continuous: rows join and leave it while it runs; None for batches that run to their end.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        limits: Limits,
        decoding: Decoding,
        ran: Callable[[int, float], Any] = lambda *_: None,
        continuous: ContinuousBatch | None = None,
    ) -> None:
        self.model, self.tokenizer, self.limits, self.decoding, self.ran = model, tokenizer, limits, decoding, ran
        self.continuous = continuous
        self._waiting: queue.Queue[BatchJob | None] = queue.Queue()
        self._lock = threading.Lock()
        self._count, self._closed = 0, False
        self._taken: list[Any] = []
        self._failing = False
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, name="steerfn-serving", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait or run."""
        return self._count

    @property
    def trouble(self) -> str | None:
        """Why requests would not be answered now; None where they would."""
        since = self._since
        if not self._thread.is_alive():
            return "the thread that runs the model has ended"
        if self._closed:
            return "the server is stopping"
        if since is not None and time.monotonic() - since > self.limits.timeout + STUCK:
            return "the model does not come back from a batch"
        return "the model fails on a single token" if self._failing else None

    def submit(self, jobs: Sequence[BatchJob]) -> None:
        """Put the jobs of one request into the queue, all or none.

        Raises:
            RequestError: the queue is full, or the server is stopping or broken.
        """
        with self._lock:
            if self._closed or not self._thread.is_alive():
                raise RequestError(f"Nothing was run: {self.trouble}; try another server.", 503, code="stopping")
            if self._count + len(jobs) > self.limits.max_queue + self.limits.max_rows:
                raise RequestError(
                    f"{self._count} texts are waiting, as many as this server takes; try again later.", 429, code="busy"
                )
            self._count += len(jobs)
            for job in jobs:
                self._waiting.put(job)

    def close(self, timeout: float | None = None) -> None:
        """Take nothing new, finish what was taken, and stop; wait so many seconds for it at most."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            if self.continuous is None:
                self._serve()
            else:
                self._serve_continuously(self.continuous)
        finally:  # whatever ended it: nobody waits for a thread that is gone
            with self._lock:
                self._closed = True
            while not self._waiting.empty():
                self._taken.append(self._waiting.get())
            for job in self._taken:
                if job is not None:
                    job.end("error", RequestError("The server stopped before it came to this request.", 503))

    def _serve(self) -> None:
        while True:
            try:
                first = self._waiting.get(timeout=RETRY if self._failing else IDLE)
            except queue.Empty:
                self._try_model()
                continue
            if first is None:
                return
            self._taken = [first]
            self._taken, last = self._gather_jobs(first)
            for some in like_lengths(self._taken):
                self._batch(some)
            if last:
                return

    def _gather_jobs(self, first: BatchJob) -> tuple[list[BatchJob], bool]:
        """The first job and those that wait or come soon; and whether the queue was closed."""
        jobs, until = [first], time.monotonic() + self.limits.gather
        while len(jobs) < self.limits.max_rows:
            try:
                job = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _serve_continuously(self, batch: ContinuousBatch) -> None:
        """Before each pass take all that waits."""
        closed = False
        while not closed or batch.jobs:
            try:
                job = self._waiting.get(block=not batch.jobs, timeout=RETRY if self._failing else IDLE)
            except queue.Empty:
                if batch.jobs:
                    self._pass(batch)
                else:
                    self._try_model()
                continue
            if job is None:
                closed = True
                continue
            self._taken.append(job)
            self._act_on(batch, functools.partial(batch.add, job), [job])

    def _pass(self, batch: ContinuousBatch) -> None:
        started = time.monotonic()
        ran = self._act_on(batch, batch.step) or []
        for job in ran:
            job.began = started if job.began is None else job.began
        if ran:
            self.ran(len(ran), time.monotonic() - started)

    def _act_on(self, batch: ContinuousBatch, act: Callable[[], Any], jobs: list[BatchJob] | None = None) -> Any:
        """Do something with a batch; if it fails, `jobs` (default: all that were taken) run one by one."""
        self._since = time.monotonic()
        try:
            done = act()
            self._failing = False
            return done
        except Exception as error:
            log.warning("a running batch failed (%s); its rows run one by one", type(error).__name__)
            if jobs is None:
                batch.clear()
                jobs = [job for job in self._taken if not job.ended]
            for job in jobs:
                self._since = time.monotonic()
                self._attempt([job])
            return None
        finally:
            self._since = None
            left = [job for job in self._taken if not job.ended]
            with self._lock:
                self._count -= len(self._taken) - len(left)
            self._taken = left

    def _batch(self, jobs: list[BatchJob]) -> None:
        self._since = started = time.monotonic()
        for job in jobs:
            job.began = started
        try:
            live = [job for job in jobs if not job.cancelled]
            for job in jobs:
                if job.cancelled:
                    job.end("cancelled")
            if live:
                self._attempt(live)
        finally:
            self._since = None
            with self._lock:
                self._count -= len(jobs)
        self.ran(len(jobs), time.monotonic() - started)

    def _attempt(self, jobs: list[BatchJob]) -> None:
        """Run jobs together; where that fails, one by one, so that only what fails alone fails."""
        try:
            run_batch(self.model, self.tokenizer, jobs, self.decoding)
            self._failing = False
        except Exception as error:
            left = [job for job in jobs if not job.ended]
            if len(jobs) == 1:
                log.exception("a request failed")
                for job in left:
                    job.end("error", error)
                return self._try_model()  # was it the request?
            log.warning("a batch of %d rows failed (%s); its rows run one by one", len(jobs), type(error).__name__)
            for job in left:
                self._attempt([job])

    def _try_model(self) -> None:
        """Find out whether the model and its device still work, with one token."""
        try:
            with torch.no_grad():
                one = torch.zeros(1, 1, dtype=torch.long, device=input_device(self.model))
                logits = self.model(input_ids=one).logits
            failing = bool(logits.isnan().any())
        except Exception:
            failing = True
        if failing and not self._failing:
            log.error("the model fails on a single token")
        self._failing = failing


PATIENCE = 0.5
"""Seconds between looks at whether the caller is still there."""


class Running:
    """The jobs of one request, and their text as it reaches the event loop.

    Args:
        timeout: seconds from now to the last token.
        keep_alive: seconds of silence after which `pieces` says that nothing has come.
    """

    def __init__(self, timeout: float, keep_alive: float = float("inf")) -> None:
        self.jobs: list[BatchJob] = []
        self.started = time.monotonic()
        self.timeout, self.keep_alive = timeout, keep_alive
        self.first: float | None = None
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()

    def on_text(self, index: int) -> Callable[[str | None], None]:
        """The callback that takes each piece of a text from the worker."""

        def put(piece: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped: nobody listens
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        return put

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a thread, for as long as the request has left.

        Raises:
            RequestError: it took longer.
        """
        try:
            with anyio.fail_after(max(0.0, self.until - time.monotonic())):
                return await anyio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
        except TimeoutError:
            raise self._late() from None

    async def pieces(self, gone: Callable[[], Any]) -> AsyncIterator[tuple[int, str | None] | None]:
        """(text, piece) as they come, and (text, None) when one has ended; jobs are cancelled on the way out.

        None says that nothing has come for a while.

        Args:
            gone: awaited now and then: whether the caller has gone.

        Raises:
            RequestError: too slow, numbers that are not finite, or the model failed.
        """
        left, last = len(self.jobs), time.monotonic()
        try:
            while left:
                remaining = self.until - time.monotonic()
                if remaining <= 0:
                    raise self._late()
                patience = min(remaining, PATIENCE, max(0.001, last + self.keep_alive - time.monotonic()))
                try:
                    index, piece = await asyncio.wait_for(self._pieces.get(), patience)
                except asyncio.TimeoutError:
                    if await gone():
                        return
                    if time.monotonic() - last >= self.keep_alive:
                        last = time.monotonic()
                        yield None
                    continue
                last = time.monotonic()
                if self.first is None and piece is not None:
                    self.first = last - self.started
                if piece is None:
                    left -= 1
                    if isinstance(error := self.jobs[index].error, RequestError):
                        raise error
                    if isinstance(error, NotFinite):
                        raise RequestError(str(error), param="steering", code="not_finite")
                    if self.jobs[index].reason == "error":
                        raise RequestError("The model failed on this request; the server's log says how.", 500)
                yield index, piece
        finally:
            for job in self.jobs:
                job.cancel()

    def _late(self) -> RequestError:
        return RequestError(
            f"The request was not done after {self.timeout:g} s and was cancelled; ask for fewer tokens.",
            504,
            code="timeout",
        )

    @property
    def until(self) -> float:
        """When its time is over, by `time.monotonic`."""
        return self.started + self.timeout

    @property
    def seconds(self) -> float:
        """Since it arrived."""
        return time.monotonic() - self.started
