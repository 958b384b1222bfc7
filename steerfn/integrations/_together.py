"""Requests of several threads, run at once: the inputs of a framework's batch as rows of one of ours."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


class Together:
    """Runs the requests of several threads at once, as soon as every thread has sent one or left.

    A framework's `invoke` does much besides generating (callbacks, caches, traces) and may generate nothing; so the
    inputs of a batch are invoked in a thread each, and meet here.

    Args:
        threads: how many there are.
        run: called once with all that was asked for, in one of the threads.
    """

    def __init__(self, threads: int, run: Callable[[Sequence[Any]], Any]) -> None:
        self.coming, self.run = threads, run
        self._waiting: list[tuple[Any, Future[None]]] = []
        self._lock = threading.Lock()

    def ask(self, what: Any) -> None:
        """Wait until it has been run.

        Raises:
            Exception: what `run` raised.
        """
        future: Future[None] = Future()
        self._waiting.append((what, future))
        self.go()
        future.result()

    def go(self) -> None:
        """Say that this thread will ask for nothing more; the last one to ask or go runs all."""
        with self._lock:
            self.coming -= 1
            last = self.coming == 0
        if last and self._waiting:
            try:
                self.run([what for what, _ in self._waiting])
            except BaseException as error:
                for _, future in self._waiting:
                    future.set_exception(error)
            else:
                for _, future in self._waiting:
                    future.set_result(None)


class Seat:
    """The place of one thread in a `Together`, to be taken once.

    Args:
        together: where it is.
        owner: whose requests it is for; those of others that come in the same thread (out of a callback) are not.
    """

    def __init__(self, together: Together, owner: Any) -> None:
        self.together, self.owner = together, owner
        self._once = threading.Lock()

    def take(self, owner: Any) -> bool:
        """Take it, if it is the owner's and still free: who has it asks or goes."""
        return owner is self.owner and self._once.acquire(blocking=False)

    def leave(self) -> None:
        """Go, where nothing was asked."""
        if self.take(self.owner):
            self.together.go()
