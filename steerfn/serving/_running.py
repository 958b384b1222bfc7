"""A request while it runs: its jobs, what the worker says of them, and the ways in which it can end early."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.to_thread

from steerfn.serving._job import Job
from steerfn.serving._refused import RequestError

PATIENCE = 0.5
"""Seconds between looks at whether the caller is still there."""


class Running:
    """The jobs of one request, heard from the event loop.

    Args:
        timeout: seconds from now to the last token.
        keep_alive: seconds of silence after which `pieces` says that nothing has come.
    """

    def __init__(self, timeout: float, keep_alive: float = float("inf")) -> None:
        self.jobs: list[Job] = []
        self.started = time.monotonic()
        self.timeout, self.keep_alive = timeout, keep_alive
        self.first: float | None = None
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()

    def hear(self, index: int) -> Callable[[str | None], None]:
        """What the worker calls with each piece of a text."""

        def heard(piece: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped: nobody listens
                self._loop.call_soon_threadsafe(self._heard.put_nowait, (index, piece))

        return heard

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
        left, said = len(self.jobs), time.monotonic()
        try:
            while left:
                remaining = self.until - time.monotonic()
                if remaining <= 0:
                    raise self._late()
                patience = min(remaining, PATIENCE, max(0.001, said + self.keep_alive - time.monotonic()))
                try:
                    index, piece = await asyncio.wait_for(self._heard.get(), patience)
                except asyncio.TimeoutError:
                    if await gone():
                        return
                    if time.monotonic() - said >= self.keep_alive:
                        said = time.monotonic()
                        yield None
                    continue
                said = time.monotonic()
                if self.first is None and piece is not None:
                    self.first = said - self.started
                if piece is None:
                    left -= 1
                    if isinstance(error := self.jobs[index].error, RequestError):
                        raise error
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
