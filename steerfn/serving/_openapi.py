"""The OpenAPI schema, as strict as the server: what its limits refuse is outside of it."""

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from steerfn.serving._guard import CHANGED
from steerfn.serving._limits import Limits


def describe(application: FastAPI, limits: Limits, keyed: bool) -> None:
    """Give an application its schema, made once.

    Args:
        application: with all its paths.
        limits: the server's.
        keyed: whether requests bear a key.
    """
    schema = get_openapi(title=application.title, version=application.version, routes=application.routes)
    parts = schema["components"]["schemas"]
    for part in ("Completion", "ChatCompletion", "Invocation"):
        fields = parts[part]["properties"]
        sizes = {"stop": limits.max_stops, "steering": limits.max_steering, "prompt": limits.max_choices}
        for field, most in sizes.items():
            for kind in fields.get(field, {}).get("anyOf", ()):
                if kind.get("type") == "array":
                    kind["maxItems"] = most
        for kind in fields["n"]["anyOf"]:
            if kind.get("type") == "integer":
                kind["maximum"] = limits.max_choices
    alpha = parts["SteeringRequest"]["properties"]["alpha"]
    alpha["minimum"], alpha["maximum"] = max(-limits.max_alpha, -1e4), min(limits.max_alpha, 1e4)
    parts["Invocation"]["oneOf"] = [
        {"required": [one], "properties": {one: {"not": {"type": "null"}}, other: {"type": "null"}}}
        for one, other in (("prompt", "messages"), ("messages", "prompt"))
    ]
    changes = [operation for method, operation in schema["paths"][f"{CHANGED}{{name}}"].items() if method != "get"]
    schemes = ["key"] * keyed + ["admin"] * bool(changes)
    if schemes:
        schema["components"]["securitySchemes"] = {name: {"type": "http", "scheme": "bearer"} for name in schemes}
    for operation in changes:
        operation["security"] = [{"admin": []}]
    if keyed:
        schema["security"] = [{"key": []}]
        for path in ("/health", "/ping"):
            schema["paths"][path]["get"]["security"] = []
    application.openapi = lambda: schema  # newer versions of FastAPI make `openapi_schema` anew
