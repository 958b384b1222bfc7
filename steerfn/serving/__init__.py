"""A server for one machine: OpenAI's completions, with a `steering` field in every request.

    steerfn serve --model demo --vectors folder

Needs the extra `serve`. See `docs/serving.md`. `app(...)` is the ASGI application, for servers of your own.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from steerfn._errors import SteerError
from steerfn._extra import missing
from steerfn.serving._limits import Limits as Limits

if TYPE_CHECKING:
    from steerfn.serving._app import app as app

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'steerfn.serving' has no attribute {name!r}")
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise SteerError(missing(package, "serve"))
    from steerfn.serving._app import app

    return app
