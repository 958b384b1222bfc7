"""A request while it runs: its jobs, what the worker says of them, and the ways in which it can end early."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from steerfn.serving._job import Job
from steerfn.serving._refused import RequestError

PATIENCE = 0.5
"""Seconds between looks at whether the caller is still there."""


class Running:
    """The jobs of one request, heard from the event loop.

    Args:
        timeout: seconds from now to the last token.
    """

    def __init__(self, timeout: float) -> None:
        self.jobs: list[Job] = []
        self.started = time.monotonic()
        self.timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()

    def hear(self, index: int) -> Callable[[str | None], None]:
        """What the worker calls with each piece of a text."""

        def heard(piece: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped: nobody listens
                self._loop.call_soon_threadsafe(self._heard.put_nowait, (index, piece))

        return heard

    async def pieces(self, gone: Callable[[], Any]) -> AsyncIterator[tuple[int, str | None]]:
        """(text, piece) as they come, and (text, None) when one has ended; jobs are cancelled on the way out.

        Args:
            gone: awaited now and then: whether the caller has gone.

        Raises:
            RequestError: too slow, numbers that are not finite, or the model failed.
        """
        left = len(self.jobs)
        try:
            while left:
                remaining = self.started + self.timeout - time.monotonic()
                if remaining <= 0:
                    raise RequestError(
                        f"The request was not done after {self.timeout:g} s and was cancelled; ask for fewer tokens.",
                        504,
                        code="timeout",
                    )
                try:
                    index, piece = await asyncio.wait_for(self._heard.get(), min(remaining, PATIENCE))
                except asyncio.TimeoutError:
                    if await gone():
                        return
                    continue
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

    @property
    def seconds(self) -> float:
        """Since it arrived."""
        return time.monotonic() - self.started
