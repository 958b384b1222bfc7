"""Options that take several values, with commas or by repeating the option: none swallows the prompt after it."""

import argparse
import re
from collections.abc import Callable
from typing import Any

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
