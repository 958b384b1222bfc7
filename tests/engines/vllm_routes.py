"""Run by vLLM's interpreter: what every route of its server answers to a request that asks for steering.

    python vllm_routes.py model result.json

The servers are vLLM's own, with all their routes and without an engine: of a model that generates, hears and talks, and
of one that embeds.
"""

import json
import os
import sys
from types import SimpleNamespace

WAYS = {"steering": "one", "vllm_xargs": {"steerfn": "one"}, "steerfn": "one"}


def answers(app):
    """By method and path, the status and text for each way to ask."""
    from starlette.routing import WebSocketRoute
    from starlette.testclient import TestClient

    client, found = TestClient(app, raise_server_exceptions=False), {}
    for route in app.routes:
        for method in sorted(getattr(route, "methods", None) or ()):
            if method in ("GET", "HEAD", "OPTIONS"):
                continue
            replies = {way: client.request(method, route.path, json={way: value}) for way, value in WAYS.items()}
            if "audio" in route.path:
                for way, value in WAYS.items():
                    data = {way: value if isinstance(value, str) else json.dumps(value)}
                    replies[f"{way} in a form"] = client.request(method, route.path, data=data, files={"file": b"x"})
            found[f"{method} {route.path}"] = {way: [each.status_code, each.text] for way, each in replies.items()}
        if isinstance(route, WebSocketRoute):
            with client.websocket_connect(route.path) as socket:
                socket.receive_json()
                replies = {}
                for way, event in {"event": {"steering": "one"}, "session": {"session": {"steering": "one"}}}.items():
                    socket.send_json({"type": "session.update", "model": "any", **event})
                    replies[way] = [400, json.dumps(socket.receive_json())]
                found[f"WEBSOCKET {route.path}"] = replies
    return found


def main():
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.plugins import load_general_plugins
    from vllm.tasks import POOLING_TASKS
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    load_general_plugins()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", sys.argv[1], "--enable-scale-out"])
    found, model = {}, SimpleNamespace(get_pooling_task=lambda tasks: "embed" if "embed" in tasks else None)
    for name, tasks in {"generates": ("generate", "transcription", "realtime"), "embeds": POOLING_TASKS}.items():
        app = build_app(args, tasks, model)
        app.state.openai_serving_realtime = None
        found[name] = answers(app)
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    main()
