"""`steerfn serve`: an OpenAI-compatible server on one machine, with steering in every request."""

import argparse
import os
from pathlib import Path
from typing import Any

from steerfn._errors import FileError, SteerError
from steerfn.cli._model import add_model_options, load_model
from steerfn.serving._limits import Limits

KEYS = "STEERFN_API_KEYS"
LIMITS = {
    "max_tokens": "tokens that one request may ask for",
    "max_rows": "texts that run at once",
    "max_queue": "texts that may wait",
    "max_body": "bytes of a request",
    "timeout": "seconds for one request",
    "drain": "seconds that running requests get at SIGTERM",
}


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("serve", help="serve a model over HTTP, each request steered", description=__doc__)
    command.add_argument("--vectors", metavar="FOLDER", help="the vector files that requests can name")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    command.add_argument("--port", type=int, default=8000, help="port (default: %(default)s; 0: any)")
    command.add_argument(
        "--api-keys",
        metavar="FILE",
        help=f"a file with API keys, one a line (default: the variable {KEYS}, separated by commas; else none)",
    )
    command.add_argument("--open", action="store_true", help="serve other machines without API keys")
    command.add_argument("--audit", metavar="FILE", help="append a line for every request to this file")
    command.add_argument("--audit-prompts", action="store_true", help="write prompts into it, too")
    for name, what in LIMITS.items():
        default = getattr(Limits(), name)
        command.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{what} (default: %(default)s)"
        )
    add_model_options(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Load the model and serve it until SIGTERM or SIGINT."""
    from steerfn import serving

    application_of = serving.app  # which says what is not installed
    import uvicorn

    if not 0 <= options.port <= 65535:
        raise SteerError(f"A port is a number from 0 (any) to 65535, not {options.port}.")
    if options.vectors is not None and not Path(options.vectors).is_dir():  # before the model is loaded
        raise FileError(f"The folder of vectors '{options.vectors}' does not exist; make it, or pass another.")
    limits = serving.Limits(**{name: getattr(options, name) for name in LIMITS})
    keys = _keys(options.api_keys)
    if options.host not in ("127.0.0.1", "localhost", "::1") and not keys and not options.open:
        raise SteerError(
            f"Serving at {options.host}, where others can reach it, wants API keys: pass --api-keys FILE, set {KEYS}, "
            "or pass --open where something in front of it keeps others out."
        )
    model, tokenizer = load_model(options)
    application = application_of(
        model,
        tokenizer,
        options.vectors,
        limits=limits,
        api_keys=keys,
        audit=options.audit,
        audit_prompts=options.audit_prompts,
    )
    uvicorn.run(
        application,
        host=options.host,
        port=options.port,
        log_level="info",
        timeout_graceful_shutdown=max(1, round(limits.drain)),
        server_header=False,
    )


def _keys(path: str | None) -> list[str]:
    if path is None:
        return [key for key in os.environ.get(KEYS, "").split(",") if key]
    try:
        found = [line.strip() for line in Path(path).read_text(encoding="utf8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"Cannot read the API keys in '{path}' ({error}); pass a text file, one key a line.") from None
    if not (keys := [key for key in found if key]):
        raise FileError(f"'{path}' holds no API key, which would leave the server open; write one a line.")
    return keys
