"""`steerfn compare`: the same prompts with and without a vector, side by side, with numbers and intervals."""

import argparse
from typing import Any

from steerfn.cli._before import check_files, metrics_of
from steerfn.cli._options import (
    add_generation_options,
    add_list,
    add_model_options,
    checked_vector,
    decoding_of,
    load_model,
    load_vector,
    prompts_of,
    scope_of,
    write_files,
)
from steerfn.values import DataError

HELP = "texts with and without a vector, side by side"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_generation_options(command)
    command.add_argument("--vector", metavar="FILE", help="a vector file, or zoo:NAME")
    command.add_argument(
        "--steering",
        metavar="JSON",
        help="several vectors that act together, in place of --vector, --alpha and --scope: a list such as "
        '\'[{"vector": "happy.safetensors", "alpha": 2, "site": "resid_post[14]", "scope": "generated"}]\'',
    )
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
    from steerfn.board import operator_of

    prompts = prompts_of(options)
    if options.max_rows < 0:
        raise DataError(f"--max-rows is {options.max_rows}; use 0 or more.")
    check_files(options, "html", "json", "markdown")
    chosen, steering = metrics_of(options), steering_of(options)
    vectors = {name: load_vector(name) for name in dict.fromkeys(push.vector for push in steering)}
    model, tokenizer = load_model(options)
    checked = {name: checked_vector(vector, model, options) for name, vector in vectors.items()}
    alone = options.steering is None
    comparison = sf.compare(
        model,
        tokenizer,
        prompts,
        checked[options.vector] if alone else operator_of(steering, checked.__getitem__),
        **chosen,
        alpha=options.alpha if alone else None,
        scope=scope_of(options) if alone else None,
        seeds=tuple(options.seeds or (0,)),
        **decoding_of(options),
    )
    comparison.show(options.max_rows)
    write_files(
        (comparison.to_html, options.html),
        (comparison.to_json, options.json),
        (comparison.to_markdown, options.markdown),
    )


def steering_of(options: argparse.Namespace) -> tuple[Any, ...]:
    """The vectors that the options name, and what is done with them.

    Raises:
        DataError: neither `--vector` nor `--steering`, or what goes with the one and not with the other.
    """
    from steerfn.board import Push, read_steering

    if (options.vector is None) == (options.steering is None):
        raise DataError("compare needs --vector FILE, or --steering JSON for several vectors, and not both.")
    if options.steering is None:
        return (Push(options.vector, options.alpha, scope=options.scope),)
    if options.alpha != 1.0 or options.scope != "everywhere":
        raise DataError("--alpha and --scope go with --vector; of --steering each entry has its own.")
    return read_steering(options.steering)
