"""In front of every request: is the caller known, and is the body small enough? Answered before anything is parsed."""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from typing import Any

from steerfn.serving._refused import RequestError

OPEN = ("/health", "/ping")
"""Paths that need no key: a load balancer asks them."""


class Gate:
    """ASGI middleware.

    Args:
        app: what is behind it.
        keys: API keys of which a request must bear one; none asks for none.
        max_body: bytes.
        count: called with the path's pattern and the status of every answer.
    """

    def __init__(
        self,
        app: Any,
        keys: Iterable[str] = (),
        max_body: int = 1 << 20,
        count: Callable[[str, int], Any] = lambda *_: None,
    ) -> None:
        self.app, self.max_body, self.count = app, max_body, count
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                # Not the path as it was asked for: callers would make labels.
                self.count(getattr(scope.get("route"), "path", "other"), message["status"])
            await send(message)

        try:
            scope.setdefault("state", {})["who"] = self._who(scope)
            body = await self._body(scope, receive)
        except RequestError as refused:
            return await _answer(counted, refused)
        told = False

        async def replay() -> Any:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        return await self.app(scope, replay, counted)

    def _who(self, scope: Any) -> str:
        """The caller: the beginning of its key's hash, which names the key and does not give it away."""
        if not self.keys or scope["path"] in OPEN:
            return "anonymous"
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        key = given[7:] if given[:7].lower() == b"bearer " else b""
        if not [known for known in self.keys if hmac.compare_digest(known, key)]:
            raise RequestError(
                "This server wants an API key that it knows: Authorization: Bearer KEY.", 401, code="invalid_api_key"
            )
        return f"key {hashlib.sha256(key).hexdigest()[:8]}"

    async def _body(self, scope: Any, receive: Any) -> bytes:
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        size = int(announced) if announced.isdigit() else 0
        parts: list[bytes] = []
        more = True
        while size <= self.max_body and more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("The caller has gone.", 400)
            parts.append(message.get("body", b""))
            size, more = max(size, sum(map(len, parts))), message.get("more_body", False)
        if size > self.max_body:
            raise RequestError(f"A request has at most {self.max_body} bytes here.", 413, code="too_large")
        return b"".join(parts)


async def _answer(send: Any, refused: RequestError) -> None:
    body = json.dumps(refused.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
