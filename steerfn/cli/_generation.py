"""What commands that generate text have in common: prompts, scope, how to decode, and vectors that fit the model."""

import argparse
import re
import sys
from typing import Any

from steerfn._errors import DataError
from steerfn.cli._lines import lines

SCOPES = ("everywhere", "prompt", "generated", "last_prompt_token")


def add_generation_options(command: argparse.ArgumentParser) -> None:
    """Prompts, and how to generate from them."""
    command.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; without any, the lines of stdin")
    command.add_argument("--file", help="prompts from a file, one a line")
    command.add_argument("--scope", choices=SCOPES, default="everywhere", help="tokens to steer (default: %(default)s)")
    command.add_argument(
        "--max-new-tokens", type=int, default=40, metavar="N", help="tokens to generate at most (default: %(default)s)"
    )
    command.add_argument("--sample", action="store_true", help="sample instead of greedy decoding")
    command.add_argument("--raw", action="store_true", help="no chat template")
    command.add_argument("--strict", action="store_true", help="refuse a vector made for another model")


def prompts_of(options: argparse.Namespace) -> list[str]:
    """The prompts that the options name, or the lines of stdin."""
    if options.max_new_tokens < 1:
        raise DataError(f"--max-new-tokens is {options.max_new_tokens}; use 1 or more.")
    prompts = [*options.prompts, *(lines(options.file) if options.file else [])]
    if not prompts:
        if sys.stdin.isatty():
            raise DataError("There is no prompt; write one after the command, name a --file, or pipe lines in.")
        prompts = [line.strip() for line in sys.stdin if line.strip()]
    if not prompts:
        raise DataError("There is no prompt; stdin was empty.")
    number = next((prompt for prompt in options.prompts if re.fullmatch(r"-?[\d.]+", prompt)), None)
    if number is not None:  # what is left over from `--alphas -2 0 2` would be taken for prompts
        raise DataError(
            f"The prompt {number!r} is a number; an option that takes several values wants commas, as in "
            "--alphas=-2,0,2. A prompt that really is a number comes from a --file or from stdin."
        )
    return prompts


def scope_of(options: argparse.Namespace) -> Any:
    """The scope that the options name; None for all tokens."""
    import steerfn as sf

    return None if options.scope == "everywhere" else getattr(sf, options.scope)


def checked(vector: Any, model: Any, options: argparse.Namespace) -> Any:
    """A vector that was checked against the model, so that what there is to say of it is said once."""
    import steerfn as sf

    sf.check_match(vector, model, strict=options.strict)
    return vector.with_metadata(model=None)
