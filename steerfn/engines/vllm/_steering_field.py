"""The field `steering` of a request to vLLM's server, with the meaning that it has in `steerfn serve`.

vLLM ignores fields that it does not know, so a steering at the wrong place would be answered unsteered. Every request
is therefore looked at before vLLM reads it: where an endpoint hands arguments to the engine, `steering` goes there, and
an endpoint that is not known to have such a place refuses it.
"""

import json
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from steerfn.engines.vllm._requests import NAME, parse
from steerfn.serving import RequestError
from steerfn.values import SteerError
from steerfn.values.files import brief

FIELD = "steering"
FORMS = (b"multipart/form-data", b"application/x-www-form-urlencoded")
XARGS, EXTRA_ARGS = ("vllm_xargs",), ("sampling_params", "extra_args")
CHATS = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")
HOLDERS = {
    **{path: XARGS for path in (*CHATS, "/v1/chat/completions/batch", "/invocations")},
    **{f"{path}/render": XARGS for path in CHATS},
    "/inference/v1/generate": EXTRA_ARGS,
}
"""By path, the mapping inside a request's body whose entry `steerfn` reaches the engine."""


def place_steering(body: Any, path: str, holders: dict[str, tuple[str, ...]] = HOLDERS) -> Any:
    """A request's body with its steering where the endpoint hands it to the engine.

    Args:
        body: what its JSON holds.
        holders: by path, where that is.

    Raises:
        SteerError: a steering that is wrong, or that this endpoint would ignore.

    Example:
        >>> from steerfn.engines.vllm._steering_field import place_steering
        >>> place_steering({"prompt": "Hello", "steering": {"vector": "happy"}}, "/v1/completions")["vllm_xargs"]
        {'steerfn': '[{"vector": "happy"}]'}
    """
    wheres = {".".join(where): where for where in ((FIELD,), (NAME,), (*XARGS, NAME), (*EXTRA_ARGS, NAME))}
    sent = [name for name, where in wheres.items() if _value_at(body, where) is not None]
    if not sent:
        return body
    if path not in holders:
        others = f", or send it to one of {', '.join(holders)}" if holders else ""
        raise SteerError(f"{path} cannot be steered; leave out {' and '.join(sent)}{others}.")
    read = (*holders[path], NAME)
    if sent == [".".join(read)]:
        return body
    if sent != [FIELD]:
        raise SteerError(
            f"{path} takes either {FIELD} or {'.'.join(read)}, and not {' and '.join(sent)}; send one of them."
        )
    entries = [each.model_dump(exclude_unset=True) for each in parse(body[FIELD], FIELD)]
    return _with_value({name: value for name, value in body.items() if name != FIELD}, read, json.dumps(entries))


def _value_at(body: Any, where: tuple[str, ...]) -> Any:
    for name in where:
        body = body.get(name) if isinstance(body, dict) else None
    return body


def _with_value(body: Any, where: tuple[str, ...], value: Any) -> Any:
    """A copy of nested mappings with one more value."""
    if not where:
        return value
    if not isinstance(body, dict | None):
        raise SteerError(f"A mapping with {where[0]} belongs where the request has {brief(body)}.")
    return {**(body or {}), where[0]: _with_value((body or {}).get(where[0]), where[1:], value)}


class SteeringField:
    """ASGI middleware, the innermost one: behind those that authenticate.

    Args:
        app: vLLM's server.
        holders: as for `place_steering`; none where the model does not generate text.
        check: called with what a request asks of the engine, before an answer that is streamed has begun.
    """

    def __init__(self, app: Any, holders: dict[str, tuple[str, ...]], check: Callable[[Any], Any]) -> None:
        self.app, self.holders, self.check = app, holders, check

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through with its steering in place, or answer it."""
        if scope["type"] == "websocket":
            return await self.app(scope, _without_steered_events(receive, send, scope["path"]), send)
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        kind = dict(scope["headers"]).get(b"content-type", b"").lower()
        try:
            data = await Request(scope, receive).body()
            if kind.startswith(FORMS):  # of audio, which no model that is steered takes
                body = placed = place_steering(await _form(scope, data), path, {})
            else:
                body = _json(data)
                placed = place_steering(body, path, self.holders)
                steering = _value_at(placed, (*self.holders.get(path, ()), NAME))
                if steering is not None:
                    self.check(steering)
        except ClientDisconnect:
            return None
        except SteerError as error:
            refusal = JSONResponse(RequestError(str(error), param=FIELD).body(), 400)
            return await refusal(scope, receive, send)
        await self.app(scope, _replay(data if placed is body else json.dumps(placed).encode(), receive), send)


def _json(data: bytes | str) -> Any:
    """The value of a JSON text; None for a text that vLLM cannot read either."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


async def _form(scope: Any, data: bytes) -> Any:
    """The fields of a form, likewise."""
    try:
        fields = dict(await Request(scope, _replay(data)).form())
    except HTTPException:
        return None
    return {**fields, XARGS[0]: _json(str(fields.get(XARGS[0])))}


def _replay(data: bytes, receive: Any = None) -> Any:
    """A `receive` that gives a body once more, and then what comes after it."""
    messages = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive_again() -> Any:
        return messages.pop() if messages else await receive()

    return receive_again


def _without_steered_events(receive: Any, send: Any, path: str) -> Any:
    """A `receive` of a websocket that answers events which ask for steering, and gives the others."""

    async def receive_unsteered() -> Any:
        while True:
            message = await receive()
            event = _json(message.get("text") or message.get("bytes") or "")
            try:
                for fields in (event, _value_at(event, ("session",))):
                    place_steering(fields, path, {})
                return message
            except SteerError as error:
                refusal = {"type": "error", "error": str(error), "code": "invalid_event"}
                await send({"type": "websocket.send", "text": json.dumps(refusal)})

    return receive_unsteered
