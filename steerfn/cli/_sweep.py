"""`steerfn sweep`: many strengths, layers and vectors on the same prompts, and which of them is best."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from steerfn.cli._before import check_files, metrics_of, sites_of
from steerfn.cli._options import (
    add_generation_options,
    add_list,
    add_model_options,
    checked_vector,
    load_model,
    load_vector,
    prompts_of,
    scope_of,
    write_files,
)
from steerfn.values import DataError, warn

HELP = "which strength, which layer, which vector"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_generation_options(command)
    command.add_argument(
        "--vector", metavar="FILE", action="append", required=True, help="a vector file, or zoo:NAME; may be repeated"
    )
    add_list(
        command,
        "--alphas",
        kind=float,
        default=[-2.0, -1.0, 0.0, 1.0, 2.0],
        metavar="A",
        help="strengths; 0 is the unsteered model (default: -2,-1,0,1,2)",
    )
    add_list(
        command,
        "--layers",
        kind=int,
        metavar="N",
        help="blocks that are tried one by one, resid_post (default: each vector at all of its sites together)",
    )
    command.add_argument("--site", action="append", default=[], help="any other site to try; may be repeated")
    command.add_argument(
        "--choice",
        action="append",
        dest="choices",
        metavar="TEXT",
        help="score these continuations of the prompts instead of generating: repeat it for each, the first is the one "
        "that counts. They follow the prompt directly, so blanks belong to them: --choice ' good' --choice ' bad'",
    )
    add_list(command, "--metric", metavar="NAME", help="measure generated texts by this")
    command.add_argument("--by", metavar="NAME", help="the metric that the best is chosen by (default: the first)")
    command.add_argument(
        "--lowest", action="store_true", help="the lowest is the best (default: where the metric says so)"
    )
    command.add_argument("--seed", type=int, default=0, help="for --sample (default: %(default)s)")
    command.add_argument("--checkpoint", metavar="FILE", help="keep how far it has come, to go on after a break")
    command.add_argument("--out", metavar="FILE", help="write the table: a name ending in .json, .csv, .md or .html")
    add_model_options(command)


def run(options: argparse.Namespace) -> None:
    """Sweep, show the table, write the file, and tell the best."""
    import steerfn as sf

    prompts = prompts_of(options)
    if options.choices:
        refuse_generation(options)
        warn_of_blanks(prompts, options)
    check_files(options, "out", "checkpoint")
    metrics = metrics_of(options)
    by = chosen_by(options)
    sites = sites_of(options.layers, options.site)
    loaded = dict(zip(names_of(options.vector), map(load_vector, options.vector), strict=True))
    model, tokenizer = load_model(options)
    sampling = {"do_sample": True, "seed": options.seed} if options.sample else {}
    decoding = {} if options.choices else {"max_new_tokens": options.max_new_tokens, "do_sample": False, **sampling}
    table = sf.sweep(
        model,
        tokenizer,
        prompts,
        {name: checked_vector(vector, model, options) for name, vector in loaded.items()},
        options.alphas,
        sites=sites or None,
        scope=scope_of(options),
        continuations=options.choices,
        **metrics,
        chat=False if options.raw else None,
        checkpoint=options.checkpoint,
        **decoding,
    )
    print(table)
    write_files((table.save, options.out))
    if by is not None:
        print(f"\nbest: {table.best(by, lowest=options.lowest or lower_is_better(by, options.metric))}")


def chosen_by(options: argparse.Namespace) -> str | None:
    """The metric that the best is chosen by; None where none is asked for, since without one long is good.

    Raises:
        DataError: one that the sweep will not have.
    """
    from steerfn.evaluate import DEFAULT, SCORED

    names = SCORED if options.choices else options.metric or (DEFAULT,)
    by = options.by or names[0]
    if by not in names:
        raise DataError(f"--by names {by!r}, which this sweep does not measure; it has {', '.join(names)}.")
    return by if options.choices or options.metric or options.by else None


def refuse_generation(options: argparse.Namespace) -> None:
    """Options of generation do nothing where continuations are scored."""
    for value, option in ((options.metric, "--metric"), (options.sample, "--sample")):
        if value:
            raise DataError(f"{option} goes with generated texts; leave it out, or leave out --choice.")
    if len(options.choices) < 2:
        raise DataError(
            "--choice is needed at least twice: for the text that counts, and for what it is compared with."
        )


def warn_of_blanks(prompts: Sequence[str], options: argparse.Namespace) -> None:
    """Say so where a continuation would be glued to the last word of a plain prompt."""
    glued = next((c for c in options.choices if c[:1].isalnum()), None)
    prompt = next((p for p in prompts if p[-1:].isalnum()), None)
    if options.raw and glued and prompt:
        warn(
            f"The continuation {glued!r} follows the prompt without a blank, as in {prompt[-12:] + glued!r}; write "
            f"{' ' + glued!r} if it is a word of its own."
        )


def names_of(paths: Sequence[str]) -> list[str]:
    """The vectors' names in the table: their files' stems where these differ, else the whole paths."""
    stems = [Path(path).stem for path in paths]
    if len(set(paths)) < len(paths):
        raise DataError(f"--vector names a file twice: {' '.join(paths)}; name each once.")
    return stems if len(set(stems)) == len(stems) else list(paths)


def lower_is_better(name: str, metrics: Sequence[str] | None) -> bool:
    """Whether a metric of generated texts says of itself that less of it is better."""
    import steerfn as sf

    return name in (metrics or ()) and sf.metrics.get(name).better == "lower"
