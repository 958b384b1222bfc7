"""Every command and option of `steerfn`, from its parsers."""

import argparse
import re
from collections.abc import Iterator

from markdown_table import markdown_table

from steerfn.cli._main import parser


def sections() -> str:
    """A section for each command."""
    top = parser()
    (commands,) = (each for each in top._actions if isinstance(each, argparse._SubParsersAction))
    return "\n\n".join(text for name, each in commands.choices.items() for text in section(f"steerfn {name}", each))


def section(name: str, command: argparse.ArgumentParser, level: str = "##") -> Iterator[str]:
    """What a command does, how it is called, and its arguments by group; then its own commands."""
    yield f"{level} {name}"
    what = re.sub(r"^`[^`]+`: ", "", command.description or "")
    yield code(what[:1].upper() + what[1:])
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    yield f"```text\n{command.format_usage().strip()}\n```"
    for group in command._action_groups:
        actions = [each for each in group._group_actions if each.help is not argparse.SUPPRESS and each.dest != "help"]
        nested = [each for each in actions if isinstance(each, argparse._SubParsersAction)]
        if rows := [row(each) for each in actions if each not in nested]:
            yield markdown_table([group.title or "", ""], rows)
        for each in nested:
            for inner, parser_ in each.choices.items():
                yield from section(f"{name} {inner}", parser_, level + "#")


def row(action: argparse.Action) -> list[str]:
    """An argument: how it is written, and what it means."""
    formatter = argparse.HelpFormatter("")
    value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    names = [f"`{name} {value}`".replace(" `", "`") for name in action.option_strings]
    positional = f"`{formatter._metavar_formatter(action, action.dest)(1)[0]}`"
    return [", ".join(names) or positional, code(formatter._expand_help(action) if action.help else "")]


def code(text: str) -> str:
    """A help text on one line, with its options as code."""
    return re.sub(
        r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")
    )
