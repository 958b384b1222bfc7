"""The paths that change vectors, for those who bear an admin key."""

import secrets
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from steerfn.serving._changes import Change, Changes
from steerfn.serving._guard import CHANGED
from steerfn.serving._keys import Keys
from steerfn.serving._request_error import RequestError
from steerfn.serving._server import Json, Server

PATH = f"{CHANGED}{{name:path}}"


def add_changes(made: FastAPI, server: Server, keys: Keys, refusals: dict[int | str, dict[str, Any]]) -> None:
    """Give an application its paths to upload, replace and remove vectors.

    They are there without admin keys too, to say so; the schema has them only where they do something.

    Args:
        made: the application.
        server: whose vectors they are.
        keys: which say who may change them.
        refusals: what the schema says of each status.
    """
    changes = Changes(server.shelf, server.reader, server.limits.timeout)
    bytes_of_file = {"type": "string", "format": "binary", "maxLength": server.limits.max_upload}

    @made.put(
        PATH,
        tags=["models"],
        include_in_schema=keys.admin,
        responses=refusals | {201: {"description": "A new vector."}, 200: {"description": "Another of its name."}},
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": bytes_of_file}}}
        },
    )
    async def put_vector(request: Request, name: str) -> Any:
        """Add a vector, or replace the one of its name: the bytes of a `.safetensors` file."""
        keys.check_admin(request.state.caller)
        data, on_change = await request.body(), _log_to(server, request)
        change, served = await run_in_threadpool(changes.put, name, data, on_change)
        server.meters.changes.labels(change.action).inc()
        former = {} if change.action == "add" else {"former_sha256": change.before}
        return Json(served.entry(name) | former, change.status)

    @made.delete(PATH, tags=["models"], include_in_schema=keys.admin, responses=refusals)
    async def delete_vector(request: Request, name: str) -> Any:
        """Remove a vector."""
        keys.check_admin(request.state.caller)
        change = await run_in_threadpool(changes.remove, name, _log_to(server, request))
        server.meters.changes.labels(change.action).inc()
        return {"id": name, "object": "vector", "deleted": True, "former_sha256": change.before}


def _log_to(server: Server, request: Request) -> Callable[[Change], None]:
    """The line of a change in the audit log, without which nothing changes."""
    identifier = request.state.id = f"vector-{secrets.token_hex(12)}"

    def write(change: Change) -> None:
        try:
            server.audit.write(
                "change",
                identifier,
                timeout=server.limits.timeout,
                who=request.state.who,
                client=request.client.host if request.client else None,
                endpoint=request.url.path,
                action=change.action,
                vector=change.name,
                sha256_before=change.before,
                sha256_after=change.after,
                status=change.status,
            )
        except OSError as error:
            raise RequestError(
                f"The audit log cannot be written ({error.strerror}), so nothing was changed.", 503, code="audit"
            ) from None

    return write
