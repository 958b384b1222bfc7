"""In front of every request: a known host, a known caller, JSON, and a body that is small enough and comes in time.

Answered before anything is parsed. Here every answer is counted too, and every refusal written to the audit log.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from steerfn._errors import DataError
from steerfn.serving._keys import Keys
from steerfn.serving._limits import Limits
from steerfn.serving._refused import RequestError

log = logging.getLogger("steerfn.serving")

OPEN = ("/health", "/ping")
"""Paths that need no key: a load balancer asks them."""
HOSTS = ("localhost", "127.0.0.1", "::1")


def known_hosts(allowed: Iterable[str]) -> frozenset[str]:
    """The names at which a server answers: this machine's own, and those that are allowed besides.

    A page of another site that resolves its name to this machine (DNS rebinding) asks for that name.

    Raises:
        DataError: a text in place of a list, or an empty name.
    """
    names = allowed if isinstance(allowed, str) else list(allowed)
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f"allowed_hosts must be a list of host names, got {names!r:.80}; pass ['name'].")
    return frozenset(_host(name.strip()) for name in (*HOSTS, *names))


class Gate:
    """ASGI middleware.

    Args:
        app: what is behind it.
        keys: the API keys.
        hosts: names in the Host header that are served besides the address that the connection came in at; "*" is any.
        limits: of bodies.
        count: called with the path's pattern and the status of every answer.
        on_refusal: awaited with the scope and the status of every request that was refused.
    """

    def __init__(
        self,
        app: Any,
        keys: Keys,
        hosts: frozenset[str],
        limits: Limits,
        count: Callable[[str, int], Any],
        on_refusal: Callable[[Any, int], Awaitable[None]],
    ) -> None:
        self.app, self.keys, self.hosts, self.limits = app, keys, hosts, limits
        self.count, self.on_refusal = count, on_refusal

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False
        head = scope["method"] == "HEAD"
        scope = {**scope, "method": "GET" if head else scope["method"], "state": {**scope.get("state", {})}}
        scope["state"].update(who="anonymous", allowed=None)

        async def send_counted(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                # Not the path as it was asked for: callers would make labels.
                self.count(getattr(scope.get("route"), "path", "other"), status)
                if status >= 400 and not (status == 503 and scope["path"] in OPEN):
                    await self.on_refusal(scope, status)
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            body = await self._admit(scope, receive)
        except RequestError as error:
            scope["state"]["refusal"] = error
            return await _answer(send_counted, error)
        told = False

        async def replay() -> Any:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self.app(scope, replay, send_counted)
        except Exception:
            if started:
                raise
            log.exception("a request failed")
            await _answer(send_counted, RequestError("The server failed on this request; its log says how.", 500))

    async def _admit(self, scope: Any, receive: Any) -> bytes:
        """The body of a request that may come in; who asks is written into its state.

        Raises:
            RequestError: it may not.
        """
        self._check_host(scope)
        if scope["path"] not in OPEN:
            given = next(iter(_headers(scope, b"authorization")), b"")
            scope["state"]["who"], scope["state"]["allowed"] = self.keys.identify(given)
        if scope["method"] == "POST":
            kind = next(iter(_headers(scope, b"content-type")), b"").split(b";")[0].strip().lower()
            if kind != b"application/json":
                raise RequestError(
                    f"A request's body must be JSON, with the header Content-Type: application/json, not "
                    f"{kind.decode('ascii', 'replace')!r:.80}.",
                    415,
                    code="unsupported_media_type",
                )
        try:
            return await asyncio.wait_for(self._body(scope, receive), self.limits.receive)
        except asyncio.TimeoutError:
            raise RequestError(
                f"The request's body had not come whole after {self.limits.receive:g} s; send it again.",
                408,
                code="timeout",
            ) from None

    def _check_host(self, scope: Any) -> None:
        given = [_host(value.decode("latin-1")) for value in _headers(scope, b"host")]
        here = {_host(scope["server"][0])} if scope.get("server") else set()
        if "*" not in self.hosts and not (given and set(given) <= self.hosts | here):
            raise RequestError(
                f"This server does not answer as {', '.join(given) or 'no host'!r:.140}; ask for localhost, or start "
                "it with --allowed-host NAME (serving.app(allowed_hosts=[...])).",
                400,
                code="unknown_host",
            )

    async def _body(self, scope: Any, receive: Any) -> bytes:
        announced = next(iter(_headers(scope, b"content-length")), b"0")
        size = int(announced) if announced.isdigit() and len(announced) < 20 else 0
        parts: list[bytes] = []
        more, read = True, 0
        while size <= self.limits.max_body and more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("The caller has gone.", 400)
            parts.append(message.get("body", b""))
            read += len(parts[-1])
            size, more = max(size, read), message.get("more_body", False)
        if size > self.limits.max_body:
            raise RequestError(f"A request has at most {self.limits.max_body} bytes here.", 413, code="too_large")
        return b"".join(parts)


def _headers(scope: Any, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _host(value: str) -> str:
    """The name in a Host header, without its port.

    Example:
        >>> _host("[::1]:8000"), _host("LocalHost:80"), _host("example.org."), _host("::1")
        ('::1', 'localhost', 'example.org', '::1')
    """
    value = value.lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value if value.count(":") > 1 else value.partition(":")[0].rstrip(".")


async def _answer(send: Any, refused: RequestError) -> None:
    body = json.dumps(refused.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
