"""`steerfn zoo`: vectors that were made and measured already: list them, read their cards, take one."""

import argparse
import shlex

from steerfn.values import visible

HELP = "ready vectors with their cards: list, show, get"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION", dest="action")
    for action, help_text in {"list": "what there is", "show": "the card of one", "get": "the file of one"}.items():
        parser = actions.add_parser(action, help=help_text, description=f"{help_text}.".capitalize())
        if action != "list":
            parser.add_argument("name", metavar="NAME", help="a vector, as the list names it")
        parser.add_argument(
            "--zoo", metavar="PLACE", help="a folder or hf://user/name (default: what comes with steerfn)"
        )
        if action == "list":
            parser.add_argument("--json", action="store_true", help="as JSON")
        if action == "get":
            parser.add_argument("--out", metavar="FILE", help="where it goes (default: NAME.safetensors)")


def run(options: argparse.Namespace) -> None:
    """Print the list or a card, or write a vector's file."""
    import steerfn as sf

    if options.action == "list":
        zoo = sf.zoo.list(options.zoo)
        print(zoo.to_json() if options.json else zoo)
    elif options.action == "show":
        print(visible(sf.zoo.card(options.name, options.zoo)))
    else:
        vector = sf.zoo.load(options.name, options.zoo)
        path = sf.save(vector, options.out or f"{options.name.rpartition('/')[2]}.safetensors")
        alpha = (vector.metadata.get("evidence") or {}).get("alpha", 1)
        quoted = [shlex.quote(str(each)) for each in (path, alpha)]
        print(f"Wrote {path}. Next:")
        print(f'     steerfn generate --vector {quoted[0]} --alpha {quoted[1]} "How was your day?"')
