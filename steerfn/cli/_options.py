"""Options that commands share: the model, prompts and their files, scope, how to decode, and lists.

An option that takes several values takes them with commas or by repeating it: none swallows the prompt after it.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steerfn.values import DataError, SteerError
from steerfn.values.files import MAX_BYTES, Refused, read_bytes

SCOPES = ("everywhere", "prompt", "generated", "last_prompt_token")


def add_generation_options(command: argparse.ArgumentParser) -> None:
    """Prompts, and how to generate from them."""
    command.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; without any, the lines of stdin")
    command.add_argument("--file", help="prompts from a file, one a line")
    add_steering_options(command)


def add_steering_options(command: argparse.ArgumentParser) -> None:
    """Which tokens a vector steers, how texts are decoded, and how the vector has to fit the model."""
    command.add_argument("--scope", choices=SCOPES, default="everywhere", help="tokens to steer (default: %(default)s)")
    command.add_argument(
        "--max-new-tokens", type=int, default=40, metavar="N", help="tokens to generate at most (default: %(default)s)"
    )
    command.add_argument("--sample", action="store_true", help="sample instead of greedy decoding")
    command.add_argument("--raw", action="store_true", help="no chat template")
    add_strict(command)


def add_strict(command: argparse.ArgumentParser) -> None:
    """How a vector has to fit the model."""
    command.add_argument(
        "--strict", action="store_true", help="refuse a vector that was not made from these very weights"
    )
    command.add_argument(
        "--strict-architecture",
        dest="strict",
        action="store_const",
        const="architecture",
        help="refuse a vector that was not made from a model of this architecture",
    )


def prompts_of(options: argparse.Namespace) -> list[str]:
    """The prompts that the options name, or the lines of stdin."""
    check_decoding(options)
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
            f"The prompt {number!r} is a number; an option that takes several values needs commas, as in "
            "--alphas=-2,0,2. A prompt that really is a number comes from a --file or from stdin."
        )
    return prompts


def check_decoding(options: argparse.Namespace) -> None:
    """Refuse what makes no text, or would change nothing.

    Raises:
        DataError: no new tokens, or seeds without sampling.
    """
    if options.max_new_tokens < 1:
        raise DataError(f"--max-new-tokens is {options.max_new_tokens}; use 1 or more.")
    if getattr(options, "seeds", None) and not options.sample:
        raise DataError("--seeds goes with --sample: without it decoding is greedy, and a seed changes nothing.")


def decoding_of(options: argparse.Namespace) -> dict[str, Any]:
    """How the options decode, as keywords of the verbs that generate."""
    return {
        "max_new_tokens": options.max_new_tokens,
        "do_sample": options.sample,
        "chat": False if options.raw else None,
    }


def scope_of(options: argparse.Namespace) -> Any:
    """The scope that the options name; None for all tokens."""
    import steerfn as sf

    return None if options.scope == "everywhere" else getattr(sf, options.scope)


def load_vector(name: str) -> Any:
    """The vector that an option names: a file, an address on the hub, or `zoo:NAME`."""
    import steerfn as sf
    from steerfn.zoo import ZOO

    return sf.zoo.load(name.removeprefix(ZOO)) if name.startswith(ZOO) else sf.load(name)


def checked_vector(vector: Any, model: Any, options: argparse.Namespace) -> Any:
    """A vector that was checked against the model, so that what there is to say of it is said once."""
    from steerfn.verbs import check_vector

    return check_vector(vector, model, strict=options.strict)


def add_model_options(command: argparse.ArgumentParser) -> None:
    """`--model` and how to load it."""
    command.add_argument(
        "--model", default="demo", help="a hub name or folder; 'demo' (default) is SmolLM2-135M-Instruct"
    )
    command.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    command.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")
    command.add_argument("--quantization", choices=("int8", "int4"), help="load the weights quantized")


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model and tokenizer that the options name."""
    import steerfn as sf

    if options.model == "demo":
        if options.quantization:
            raise SteerError("--quantization goes with --model NAME; the demo model is loaded as it is.")
        return sf.demo_model(device=options.device or "cpu", dtype=options.dtype)
    return sf.from_pretrained(
        options.model, device=options.device, dtype=options.dtype, quantization=options.quantization
    )


def lines(path: str) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        text = read_bytes(Path(path), MAX_BYTES, "pass a text file").decode("utf-8-sig")
    except Refused as refused:
        raise DataError(f"Cannot read '{path}': {refused.what}; {refused.fix}.") from None
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}; check the name.") from None
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not UTF-8 text; save it as UTF-8.") from None
    stripped = [line.strip() for line in text.splitlines() if line.strip()]
    if not stripped:
        raise DataError(f"'{path}' holds no text; write one example a line.")
    return stripped


def write_files(*files: tuple[Callable[[str], Any], str | None]) -> None:
    """Write the files that options name, and say so."""
    for write, path in files:
        if path:
            write(path)
            print(f"\nWrote {path}.")


NEGATIVE = re.compile(r"-\.?\d")
"""How a negative number begins, alone or at the head of a list: a value, never an option."""


class _Extend(argparse.Action):
    """Adds the values of every use of the option; those of the first take the default's place."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        del parser, option_string
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(() if before is self.default else before), *values])


def add_list(command: argparse.ArgumentParser, *names: str, kind: Callable[[str], Any] = str, **options: Any) -> None:
    """Add an option that takes values with commas between them, and may be repeated."""

    def parse_values(text: str) -> list[Any]:
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError:
            what = {int: "whole numbers", float: "numbers"}.get(kind, "names")  # pyright: ignore[reportArgumentType]
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of {what}; write for example 1,2,3.") from None

    command.add_argument(*names, action=_Extend, type=parse_values, **options)


def accept_negative_numbers(command: argparse.ArgumentParser) -> None:
    """Let `--alphas -2,0,2` be a value without a trick; argparse knows only single negative numbers."""
    command._negative_number_matcher = NEGATIVE
