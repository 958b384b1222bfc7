"""A real server in a thread of its own: uvicorn on a free port, as `steerfn serve` runs it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests
from openai import OpenAI


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
    until = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < until and thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


def client(address: str, key: str = "none") -> OpenAI:
    """OpenAI's own client."""
    return OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


def post(address: str, path: str, body: Any, **more: Any) -> requests.Response:
    """One request."""
    return requests.post(f"{address}{path}", json=body, timeout=60, **more)
