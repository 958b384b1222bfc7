"""A server for one machine: OpenAI's completions, with a `steering` field in every request.

    steerfn serve --model demo --vectors folder

Needs the extra `serve`. See `docs/guides/serving.md`. `app(...)` is the ASGI application, for servers of your own.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from steerfn._lazy import lazy
from steerfn.serving._limits import Limits as Limits
from steerfn.values import SteerError, missing

if TYPE_CHECKING:  # what needs the extra
    from steerfn.serving._app import app as app
    from steerfn.serving._audit import check_log as check_log
    from steerfn.serving._connection import patient_protocol as patient_protocol
    from steerfn.serving._hosts import host_name as host_name
    from steerfn.serving._hosts import known_hosts as known_hosts
    from steerfn.serving._jobs import check_default as check_default
    from steerfn.serving._keys import Keys as Keys
    from steerfn.serving._keys import check_keys as check_keys
    from steerfn.serving._request_error import RequestError as RequestError
    from steerfn.serving._schemas import SteeringRequest as SteeringRequest
    from steerfn.serving._vectors import NAME as NAME
    from steerfn.serving._vectors import Shelf as Shelf

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")

_load, __dir__ = lazy(
    globals(),
    {
        "steerfn.serving._app": "app",
        "steerfn.serving._audit": "check_log",
        "steerfn.serving._connection": "patient_protocol",
        "steerfn.serving._jobs": "check_default",
        "steerfn.serving._hosts": "host_name known_hosts",
        "steerfn.serving._keys": "Keys check_keys",
        "steerfn.serving._request_error": "RequestError",
        "steerfn.serving._schemas": "SteeringRequest",
        "steerfn.serving._vectors": "NAME Shelf",
    },
)


def __getattr__(name: str) -> Any:
    if name == "app":
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise SteerError(missing(package, "serve"))
    return _load(name)
