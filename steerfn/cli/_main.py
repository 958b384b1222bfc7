"""Parsing, and the one place where an error becomes a line and an exit code."""

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, cast

from steerfn.cli._options import accept_negative_numbers
from steerfn.cli._terminal import VisibleStream
from steerfn.output import no_advice, silence
from steerfn.values import SteerError, SteerWarning


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 2 for a user's mistake (one clear line on stderr); 130 when interrupted.
    """
    options = parser().parse_args(argv)
    warnings.showwarning = _show_warning(warnings.showwarning)
    quiet = silence if options.quiet else no_advice  # advice is for those who call transformers
    try:
        with quiet(), contextlib.redirect_stdout(cast(Any, VisibleStream(sys.stdout))):
            options.run(options)
    except SteerError as error:
        print(f"steerfn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steerfn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, say) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _show_warning(otherwise: Any) -> Any:
    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, SteerWarning):
            print(f"steerfn: warning: {message}", file=sys.stderr)
        else:
            otherwise(message, category, *where, **more)

    return show


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    from steerfn import __version__
    from steerfn.cli import (
        _bake,
        _compare,
        _dashboard,
        _demo,
        _discover,
        _export,
        _generate,
        _inspect,
        _report,
        _serve,
        _sweep,
        _zoo,
    )

    top = argparse.ArgumentParser(
        prog="steerfn", description="Change how a language model behaves, without training, and undo it bit for bit."
    )
    top.add_argument("--version", action="version", version=f"steerfn {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (
        _demo,
        _discover,
        _generate,
        _compare,
        _sweep,
        _report,
        _inspect,
        _zoo,
        _export,
        _bake,
        _serve,
        _dashboard,
    ):
        # A command has the name of its file, and that file's first line as its description.
        name = module.__name__.rpartition("._")[2]
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_options(command)
        command.set_defaults(run=module.run)
        accept_negative_numbers(command)
        command.add_argument("--quiet", action="store_true", help="no progress bars and no banners")
    return top
