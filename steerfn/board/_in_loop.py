"""Gradio's own work is done in an event loop that is closed again."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any


def in_loop(make: Callable[[], Any]) -> Any:
    """The result of a function that is called inside a running event loop in a thread of its own.

    Elsewhere Gradio sets an event loop for the calling thread, and closes none.
    """

    async def run() -> Any:
        return make()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()
