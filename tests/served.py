"""A real server in a thread of its own: uvicorn on a free port, as `steerfn serve` runs it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests
from families import build
from openai import OpenAI
from words import NAMES, words


def tokenizer() -> Any:
    """Of the tiny model, with a chat template."""
    return words(template=True, names=NAMES)


@contextlib.contextmanager
def served(application: Any, **more: Any) -> Iterator[str]:
    """The address of a server that runs the application; what `steerfn serve` tells uvicorn besides may be passed."""
    import uvicorn

    config = uvicorn.Config(
        application, port=0, log_level="error", timeout_graceful_shutdown=20, lifespan="on", proxy_headers=False, **more
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive())
    assert server.started, "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive(), "the server did not stop"


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Until something is so; for two minutes, say, after which it never will be."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


def paced(passes: int) -> tuple[Any, threading.Semaphore]:
    """A tiny model that makes so many forward passes, and one more for each release of the semaphore."""
    model, permits = build("llama"), threading.Semaphore(passes)
    model.model.layers[0].register_forward_pre_hook(lambda *_: permits.acquire(timeout=120) and None)
    return model, permits


def client(address: str, key: str = "none") -> OpenAI:
    """OpenAI's own client."""
    return OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=250)


def post(address: str, path: str, body: Any, **more: Any) -> requests.Response:
    """One request."""
    return requests.post(f"{address}{path}", json=body, timeout=250, **more)
