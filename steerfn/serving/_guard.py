"""In front of every request: a known host, a known caller, JSON, and a body that is small enough and comes in time.

Answered before anything is parsed. The upload of a vector is no JSON and may be larger; it is read only where an admin
key came with it. Every answer is counted, for Prometheus, and every refusal written to the audit log.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from steerfn.serving._hosts import host_name
from steerfn.serving._keys import ANONYMOUS, Keys
from steerfn.serving._limits import Limits
from steerfn.serving._request_error import RequestError

log = logging.getLogger("steerfn.serving")

OPEN = ("/health", "/ping")
"""Paths that need no key: a load balancer asks them."""
CHANGED = "/v1/vectors/"
"""Where PUT and DELETE change vectors."""


class Guard:
    """ASGI middleware.

    Args:
        app: what is behind it.
        keys: of those who may ask, and of those who may change vectors.
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
        scope["state"].update(caller=ANONYMOUS, who=ANONYMOUS.who, allowed=ANONYMOUS.allowed)

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
        replayed = False

        async def replay() -> Any:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
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
        state = scope["state"]
        if scope["path"] not in OPEN:
            caller = self.keys.identify(next(iter(_headers(scope, b"authorization")), b""))
            state.update(caller=caller, who=caller.who, allowed=caller.allowed)
        changing = scope["method"] in ("PUT", "DELETE") and scope["path"].startswith(CHANGED)
        if changing:
            self.keys.check_admin(state["caller"])
        upload = changing and scope["method"] == "PUT"
        if upload:
            _check_kind(scope, b"application/octet-stream", "A vector's file must be sent as bytes")
        elif scope["method"] == "POST":
            _check_kind(scope, b"application/json", "A request's body must be JSON")
        most = self.limits.max_upload if upload else self.limits.max_body
        try:
            return await asyncio.wait_for(_body(scope, receive, most), self.limits.receive)
        except asyncio.TimeoutError:
            raise RequestError(
                f"The request's body had not come whole after {self.limits.receive:g} s; send it again.",
                408,
                code="timeout",
            ) from None

    def _check_host(self, scope: Any) -> None:
        names = [host_name(value.decode("latin-1")) for value in _headers(scope, b"host")]
        here = {host_name(scope["server"][0])} if scope.get("server") else set()
        if "*" not in self.hosts and not (names and set(names) <= self.hosts | here):
            raise RequestError(
                f"This server does not answer as {', '.join(names) or 'no host'!r:.140}; ask for localhost, or start "
                "it with --allowed-host NAME (serving.app(allowed_hosts=[...])).",
                400,
                code="unknown_host",
            )


def _check_kind(scope: Any, kind: bytes, rule: str) -> None:
    sent = next(iter(_headers(scope, b"content-type")), b"").split(b";")[0].strip().lower()
    if sent != kind:
        raise RequestError(
            f"{rule}, with the header Content-Type: {kind.decode()}, not {sent.decode('ascii', 'replace')!r:.80}.",
            415,
            code="unsupported_media_type",
        )


async def _body(scope: Any, receive: Any, most: int) -> bytes:
    announced = next(iter(_headers(scope, b"content-length")), b"0")
    size = int(announced) if announced.isdigit() and len(announced) < 20 else 0
    parts: list[bytes] = []
    more, read = True, 0
    while size <= most and more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("The caller has gone.", 400)
        parts.append(message.get("body", b""))
        read += len(parts[-1])
        size, more = max(size, read), message.get("more_body", False)
    if size > most:
        raise RequestError(f"A request has at most {most} bytes here.", 413, code="too_large")
    return b"".join(parts)


def _headers(scope: Any, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


async def _answer(send: Any, refused: RequestError) -> None:
    body = json.dumps(refused.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


TYPE = CONTENT_TYPE_LATEST
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Meters:
    """Counters of one server.

    Args:
        waiting: how many texts wait or run.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "steerfn_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry
        )
        self.steered = Counter("steerfn_steered_requests", "Requests by vector.", ["vector"], registry=self.registry)
        self.tokens = Counter("steerfn_tokens", "Tokens read and generated.", ["kind"], registry=self.registry)
        self.rows = Histogram("steerfn_batch_rows", "Rows of a batch.", buckets=ROWS, registry=self.registry)
        self.seconds = Histogram(
            "steerfn_request_seconds",
            "Seconds from arrival to the last token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first = Histogram(
            "steerfn_first_token_seconds",
            "Seconds from arrival to the first text.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queued = Histogram(
            "steerfn_queue_seconds",
            "Seconds that a text waited for its batch.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram("steerfn_batch_seconds", "Seconds of a batch.", buckets=SECONDS, registry=self.registry)
        self.changes = Counter(
            "steerfn_vector_changes", "Vectors added, replaced and removed.", ["action"], registry=self.registry
        )
        self.refusals = Counter("steerfn_refused", "Requests refused, by reason.", ["code"], registry=self.registry)
        Gauge("steerfn_waiting", "Texts that wait or run.", registry=self.registry).set_function(waiting)

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self.registry)
