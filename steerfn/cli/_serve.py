"""`steerfn serve`: an OpenAI-compatible server on one machine, with steering in every request."""

import argparse
import json
import signal
import threading
from pathlib import Path
from typing import Any

from steerfn.cli._key_file import ADMIN_KEYS, API_KEYS, admin_keys, api_keys
from steerfn.cli._options import add_model_options, load_model
from steerfn.serving import Limits
from steerfn.values import FileError, SteerError, integer

ANY = ("0.0.0.0", "::", "")
LIMITS = {
    "max_tokens": "tokens of one text; a request that asks for more gets as many",
    "max_alpha": "the largest strength, of all that a request does with one vector together",
    "max_rows": "texts that run at once",
    "max_queue": "texts that may wait",
    "cache_tokens": "tokens of all texts together that --continuous keeps",
    "max_body": "bytes of a request",
    "max_upload": "bytes of a vector that is uploaded",
    "timeout": "seconds for one request",
    "receive": "seconds in which a request must have come whole",
    "keep_alive": "seconds of silence after which a stream that waits says so",
    "drain": "seconds that running requests get at SIGTERM",
}
LISTS = {
    "allowed-host": "a host name at which the server is known, besides localhost and --host (*: any)",
    "cors-origin": "a web page whose scripts may ask, as https://host",
    "trusted-proxy": "the address of a proxy whose X-Forwarded-For says who the caller is",
}


HELP = "serve a model over HTTP, each request steered"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("--vectors", metavar="FOLDER", help="the vector files that requests can name")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    command.add_argument("--port", type=int, default=8000, help="port (default: %(default)s; 0: any)")
    command.add_argument(
        "--api-keys",
        metavar="FILE",
        help="a file with API keys, one a line, each with the vectors that it may use after it (none: all), as a name "
        "or with a range of alpha, name=low:high (*: every other vector); default: the variable "
        f"{API_KEYS}, keys separated by commas; else no keys",
    )
    command.add_argument(
        "--admin-keys",
        metavar="FILE",
        help="a file with keys, one a line, that may upload, replace and remove vectors too; default: the variable "
        f"{ADMIN_KEYS}, keys separated by commas; else nobody may",
    )
    command.add_argument("--open", action="store_true", help="serve other machines without API keys")
    command.add_argument(
        "--default-steering",
        metavar="STEERING",
        help="what steers every request, whatever it asks for: a name, or JSON as in a request's steering field",
    )
    command.add_argument(
        "--continuous",
        action="store_true",
        help="let texts join and leave a running batch, so that none waits for the others' last token",
    )
    for option, what in LISTS.items():
        command.add_argument(f"--{option}", action="append", default=[], metavar="NAME", help=f"{what}; repeatable")
    command.add_argument("--audit", metavar="FILE", help="append a line for every request to this file")
    command.add_argument("--audit-prompts", action="store_true", help="write prompts into it, too")
    for name, what in LIMITS.items():
        default = getattr(Limits(), name)
        command.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{what} (default: %(default)s)"
        )
    add_model_options(command)


def run(options: argparse.Namespace) -> None:
    """Load the model and serve it until SIGTERM or SIGINT."""
    from steerfn import serving

    application_of = serving.app  # which says what is not installed
    import uvicorn

    from steerfn.serving import check_default, check_keys, check_log, patient_protocol

    integer("--port", options.port, 0, 65535, hint="0 takes any that is free")
    if options.vectors is not None and not Path(options.vectors).is_dir():  # before the model is loaded
        raise FileError(f"The folder of vectors '{options.vectors}' does not exist; make it, or pass another.")
    limits = serving.Limits(**{name: getattr(options, name) for name in LIMITS})
    keys, admins = api_keys(options.api_keys), admin_keys(options.admin_keys)
    check_keys(keys, admins)
    if options.host not in ("127.0.0.1", "localhost", "::1") and not keys and not options.open:
        raise SteerError(
            f"Serving at {options.host}, where others can reach it, needs API keys: pass --api-keys FILE, set "
            f"{API_KEYS}, or pass --open where something in front of it keeps others out."
        )
    if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # log rotation sends it; the audit log follows by itself
    steering = _steering(options.default_steering)
    if steering is not None:
        check_default(steering, options.vectors)
    if options.audit is not None:
        check_log(options.audit)
    model, tokenizer = load_model(options)
    application = application_of(
        model,
        tokenizer,
        options.vectors,
        limits=limits,
        api_keys=keys,
        admin_keys=admins,
        default_steering=steering,
        continuous=options.continuous,
        allowed_hosts=[*_several(options.allowed_host), *([] if options.host in ANY else [options.host])],
        cors_origins=_several(options.cors_origin),
        audit=options.audit,
        audit_prompts=options.audit_prompts,
    )
    proxies = _several(options.trusted_proxy)
    uvicorn.run(
        application,
        http=patient_protocol(limits.receive),
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        host=options.host,
        port=options.port,
        log_level="info",
        timeout_graceful_shutdown=max(1, round(limits.drain)),
        server_header=False,
    )


def _several(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]


def _steering(value: str | None) -> Any:
    """A name, or what JSON says."""
    if value is None or value[:1] not in "[{":
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise SteerError(
            f"--default-steering is not JSON ({error}); pass a vector's name, or an object such as "
            '\'{"vector": "happy", "alpha": 2.0}\'.'
        ) from None
