"""`steerfn compare`: the same prompts with and without a vector, side by side, with numbers and intervals."""

import argparse
from typing import Any

from steerfn._errors import DataError
from steerfn.cli._generation import add_generation_options, checked, prompts_of, scope_of
from steerfn.cli._lists import add_list
from steerfn.cli._model import add_model_options, load_model


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("compare", help="texts with and without a vector, side by side", description=__doc__)
    add_generation_options(command)
    command.add_argument("--vector", metavar="FILE", required=True, help="a vector file")
    command.add_argument("--alpha", type=float, default=1.0, help="strength (default: %(default)s)")
    add_list(
        command,
        "--metric",
        metavar="NAME",
        help="what to measure, such as sentiment,bleu (default: length, distinct_n, repetition)",
    )
    add_list(
        command, "--seeds", kind=int, metavar="N", help="with --sample: each gives every prompt a text (default: 0)"
    )
    command.add_argument(
        "--max-rows", type=int, default=8, metavar="N", help="texts to show; files hold all (default: %(default)s)"
    )
    command.add_argument("--html", metavar="FILE", help="write a page with all texts")
    command.add_argument("--json", metavar="FILE", help="write texts, numbers, and what is needed to repeat them")
    command.add_argument("--markdown", metavar="FILE", help="write tables of markdown")
    add_model_options(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Compare, show, and write what was asked for."""
    import steerfn as sf

    prompts = prompts_of(options)
    if options.seeds and not options.sample:
        raise DataError("--seeds goes with --sample: without it decoding is greedy, and a seed changes nothing.")
    if options.max_rows < 0:
        raise DataError(f"--max-rows is {options.max_rows}; use 0 or more.")
    vector = sf.load(options.vector)
    model, tokenizer = load_model(options)
    chosen = {} if options.metric is None else {"metrics": options.metric}
    found = sf.compare(
        model,
        tokenizer,
        prompts,
        checked(vector, model, options),
        **chosen,
        alpha=options.alpha,
        scope=scope_of(options),
        seeds=tuple(options.seeds or (0,)),
        max_new_tokens=options.max_new_tokens,
        chat=False if options.raw else None,
        progress=not options.quiet,
        do_sample=options.sample,
    )
    found.show(options.max_rows)
    for write, path in (
        (found.to_html, options.html),
        (found.to_json, options.json),
        (found.to_markdown, options.markdown),
    ):
        if path:
            write(path)
            print(f"\nWrote {path}.")
