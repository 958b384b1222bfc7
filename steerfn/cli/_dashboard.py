"""`steerfn dashboard`: a page to try vectors on, in the browser; or what one of its states shows, as a file."""

import argparse
import signal
from pathlib import Path
from typing import Any

from steerfn.cli._before import check_files
from steerfn.cli._key_file import API_KEYS, api_keys
from steerfn.cli._options import add_model_options, load_model
from steerfn.values import DataError, integer

HELP = "try vectors on a page in the browser"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("name", nargs="?", metavar="MODEL", help="as --model")
    command.add_argument(
        "--vectors", metavar="FOLDER", default="vectors",
        help="where vectors lie and new ones are saved (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--state",
        metavar="STATE",
        help="what is shown first: a file that the page saved, or what stands behind the ? of its link",
    )
    command.add_argument("--out", metavar="FILE", help="write what the state shows as HTML, and serve no page")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    command.add_argument("--port", type=int, default=7860, help="port (default: %(default)s; 0: any)")
    command.add_argument(
        "--api-keys",
        metavar="FILE",
        help="a file with keys, one a line, of which a visitor must give one; default: the variable "
        f"{API_KEYS}, keys separated by commas; else no keys",
    )
    command.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME",
        help="a host name at which the page is known, besides localhost and --host; repeatable",
    )  # fmt: skip
    add_model_options(command)


def run(options: argparse.Namespace) -> None:
    """Load the model, and serve the page until it is interrupted, or write the file."""
    from steerfn import board

    state = state_of(options.state)
    board.folder_of(options.vectors)  # before the model is loaded
    options.model = options.name or options.model
    if options.out:
        check_files(options, "out")
        model, tokenizer = load_model(options)
        board.write_result(options.out, model, tokenizer, board.Presets(options.vectors, model), state)
        print(f"Wrote {options.out}.")
        return
    integer("--port", options.port, 0, 65535, hint="0 takes any that is free")
    keys = board.check_keys(options.host, api_keys(options.api_keys))
    model, tokenizer = load_model(options)
    given = {name: getattr(options, name) for name in ("device", "dtype", "quantization") if getattr(options, name)}
    source = board.Source(options.model, given, options.vectors)
    page = board.Page(model, tokenizer, board.Presets(options.vectors, model), source, state)
    application = board.app(page, keys, [*options.allowed_host, options.host])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl+C does
    with board.Dashboard(application, options.host, options.port) as running:
        print(f"The page is at {running.url} (Ctrl+C ends it)", flush=True)
        running.wait()


def state_of(text: str | None) -> Any:
    """The state that an option names: a file's, or that of a link's query.

    Raises:
        DataError: neither.
    """
    from steerfn.board import State

    if text is None:
        return State()
    if not text.endswith(".json"):
        return State.from_query(text.rpartition("?")[2])
    try:
        return State.from_json(Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the state in '{text}' ({error}); pass a file that the page saved.") from None
