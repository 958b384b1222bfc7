"""The one thread that runs the model: it takes what waits and runs it as rows of one batch."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from steerfn.serving._batch import run_batch
from steerfn.serving._job import Job
from steerfn.serving._limits import Limits
from steerfn.serving._refused import RequestError

log = logging.getLogger("steerfn.serving")


class Worker:
    """Runs jobs until it is closed.

    Args:
        model: the model; only this thread runs it.
        tokenizer: its tokenizer.
        limits: how many rows wait and run.
        ran: called after each batch with its rows and seconds.
    """

    def __init__(
        self, model: Any, tokenizer: Any, limits: Limits, ran: Callable[[int, float], Any] = lambda *_: None
    ) -> None:
        from steerfn._decoding import ends_of

        self.model, self.tokenizer, self.limits, self.ran = model, tokenizer, limits, ran
        self.ends = frozenset(ends_of(model, tokenizer, {}))
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._lock = threading.Lock()
        self._count, self._closed = 0, False
        self._thread = threading.Thread(target=self._run, name="steerfn-serving", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait or run."""
        return self._count

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put the jobs of one request into the queue, all or none.

        Raises:
            RequestError: the queue is full, or the server is stopping.
        """
        with self._lock:
            if self._closed:
                raise RequestError("The server is stopping; try another one.", 503, code="stopping")
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
        while (first := self._waiting.get()) is not None:
            jobs, last = self._gathered(first)
            self._batch(jobs)
            if last:
                return

    def _gathered(self, first: Job) -> tuple[list[Job], bool]:
        """A batch: the first job and those that wait or come soon; and whether the queue was closed."""
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

    def _batch(self, jobs: list[Job]) -> None:
        started = time.monotonic()
        try:
            live = [job for job in jobs if not job.cancelled]
            for job in jobs:
                if job.cancelled:
                    job.end("cancelled")
            if live:
                self._attempt(live)
        finally:
            with self._lock:
                self._count -= len(jobs)
        self.ran(len(jobs), time.monotonic() - started)

    def _attempt(self, jobs: list[Job]) -> None:
        """Run jobs together; where that fails, one by one, so that only what fails alone fails."""
        try:
            run_batch(self.model, self.tokenizer, jobs, self.ends)
        except Exception as error:
            left = [job for job in jobs if not job.ended]
            if len(jobs) == 1:
                log.exception("a request failed")
                for job in left:
                    job.end("error", error)
                return
            log.warning("a batch of %d rows failed (%s); its rows run one by one", len(jobs), type(error).__name__)
            for job in left:
                self._attempt([job])
