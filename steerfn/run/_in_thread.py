"""Work in a thread of its own that is handed out piece by piece, and stopped by whoever reads it."""

import contextvars
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from steerfn.verbs import STREAM


def pieces_of(work: Callable[[Callable[[Any], None], threading.Event], Any]) -> Generator[Any, None, None]:
    """The pieces that some work emits, while it runs in a thread of its own.

    Contexts that are open in the calling thread hold there too. An error of the work is raised where the pieces are
    read. Closing the iterator sets the event and waits for the end of the work.

    Args:
        work: called with a function that takes a piece, and with an event that asks it to stop.
    """
    pieces: queue.Queue[tuple[Any, ...]] = queue.Queue()
    stop = threading.Event()

    def run() -> None:
        end: Any = None
        try:
            work(lambda piece: pieces.put((piece, False)), stop)
        except BaseException as error:  # raised where the pieces are read
            end = error
        pieces.put((end, True))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name=STREAM, daemon=True)
    thread.start()
    try:
        while True:
            piece, last = pieces.get()
            if not last:
                yield piece
            elif piece is None:
                return
            else:
                raise piece
    finally:
        stop.set()
        thread.join()


def stop_when(event: threading.Event) -> Any:
    """A stopping criterion that ends every row once an event is set."""
    import torch
    from transformers import StoppingCriteria

    class StopWhenSet(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), event.is_set(), dtype=torch.bool, device=input_ids.device)

    return StopWhenSet()
