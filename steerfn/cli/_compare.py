"""`steerfn compare`: the same prompts with and without a vector, side by side, with numbers and intervals."""

import argparse

from steerfn.cli._before import check_files, metrics_of
from steerfn.cli._options import (
    add_generation_options,
    add_list,
    add_model_options,
    checked_vector,
    decoding_of,
    load_model,
    prompts_of,
    scope_of,
    write_files,
)
from steerfn.values import DataError

HELP = "texts with and without a vector, side by side"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
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


def run(options: argparse.Namespace) -> None:
    """Compare, show, and write what was asked for."""
    import steerfn as sf

    prompts = prompts_of(options)
    if options.max_rows < 0:
        raise DataError(f"--max-rows is {options.max_rows}; use 0 or more.")
    check_files(options, "html", "json", "markdown")
    chosen, vector = metrics_of(options), sf.load(options.vector)
    model, tokenizer = load_model(options)
    comparison = sf.compare(
        model,
        tokenizer,
        prompts,
        checked_vector(vector, model, options),
        **chosen,
        alpha=options.alpha,
        scope=scope_of(options),
        seeds=tuple(options.seeds or (0,)),
        **decoding_of(options),
    )
    comparison.show(options.max_rows)
    write_files(
        (comparison.to_html, options.html),
        (comparison.to_json, options.json),
        (comparison.to_markdown, options.markdown),
    )
