"""In front of every request: a known host, no page of another site, and a key where one is asked for."""

import html
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from steerfn.output import page, render
from steerfn.serving import Keys, RequestError, host_name

COOKIE = "steerfn_key"
LOGIN = "/key"
MOST = 4096
"""Bytes of the form with the key."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""Nothing from elsewhere. The toolkit's scripts compile templates, so they may evaluate."""


class Door:
    """ASGI middleware.

    Args:
        app: the page.
        keys: of those who may come in; none asked for where `keys.open`.
        hosts: names in the Host header that are served, besides the address that the connection came in at.
    """

    def __init__(self, app: Any, keys: Keys, hosts: frozenset[str]) -> None:
        self.app, self.keys, self.hosts = app, keys, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check_site(scope, headers)
        except RequestError as error:
            return await _answer(send, error.status, html.escape(error.message))
        if scope["type"] == "websocket":  # the page needs none
            return await send({"type": "websocket.close", "code": 1008})
        asking = (scope["method"], scope["path"]) == ("POST", LOGIN) and not self.keys.open
        if asking or not self._is_known(headers):
            return await self._ask(scope, receive, send)

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_headers()]
            await send(message)

        await self.app(scope, receive, send_guarded)

    def _check_site(self, scope: Any, headers: dict[str, str]) -> None:
        known = self.hosts | ({host_name(scope["server"][0])} if scope.get("server") else set())
        hosts = {host_name(value.decode("latin-1")) for name, value in scope["headers"] if name.lower() == b"host"}
        if not (hosts and hosts <= known) and "*" not in self.hosts:
            raise RequestError(
                f"This page does not answer as {', '.join(hosts) or 'no host'!r:.140}; ask for localhost, or start it "
                "with --allowed-host NAME.",
                400,
            )
        # A page of another site may send requests here, though it cannot read the answers.
        origin = headers.get("origin", "")
        if origin and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise RequestError(f"A page of {origin!r:.140} may not use this one.", 403)

    def _is_known(self, headers: dict[str, str]) -> bool:
        if self.keys.open:
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        sent = headers.get("authorization", f"Bearer {unquote(cookie.value)}" if cookie else "")
        try:
            self.keys.identify(sent.encode("latin-1", "replace"))
        except RequestError:
            return False
        return True

    async def _ask(self, scope: Any, receive: Any, send: Any) -> None:
        """The form that takes the key, and its answer: a cookie, and the way back."""
        if (scope["method"], scope["path"]) != ("POST", LOGIN):
            back = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
            return await _answer(send, 401, _form(back if scope["path"] == "/" else "/", False))
        body = b""
        while len(body) <= MOST:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        fields = parse_qs(body[:MOST].decode("latin-1"))
        key, back = fields.get("key", [""])[0].strip(), fields.get("back", ["/"])[0]
        if not self._is_known({"authorization": f"Bearer {key}"}):
            return await _answer(send, 401, _form(back, True))
        where = back if back.startswith("/?") and back.isascii() and back.isprintable() else "/"
        cookie = f"{COOKIE}={quote(key)}; HttpOnly; SameSite=Strict; Path=/"
        more = [(b"location", where.encode()), (b"set-cookie", cookie.encode())]
        await _answer(send, 303, "", *more)


def _form(back: str, wrong: bool) -> str:
    return page("steerfn: key", render("board/key.html.j2", back=back, wrong=wrong, action=LOGIN))


def _headers() -> list[tuple[bytes, bytes]]:
    fixed = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    return [(name.encode(), value.encode()) for name, value in fixed.items()]


async def _answer(send: Any, status: int, text: str, *more: tuple[bytes, bytes]) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_headers()]})
    await send({"type": "http.response.body", "body": body})
