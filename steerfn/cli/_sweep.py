"""`steerfn sweep`: many strengths, layers and vectors on the same prompts, and which of them is best."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerfn._errors import DataError, SteerWarning
from steerfn.cli._generation import add_generation_options, checked, prompts_of, scope_of
from steerfn.cli._lists import add_list
from steerfn.cli._model import add_model_options, load_model


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("sweep", help="which strength, which layer, which vector", description=__doc__)
    add_generation_options(command)
    command.add_argument(
        "--vector", metavar="FILE", action="append", required=True, help="a vector file; may be repeated"
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
    command.add_argument("--out", metavar="FILE", help="write the table as JSON")
    add_model_options(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Sweep, show the table, write the file, and tell the best."""
    import steerfn as sf

    prompts = prompts_of(options)
    if options.choices:
        refuse_generation(options)
        warn_of_blanks(prompts, options)
    loaded = dict(zip(names_of(options.vector), map(sf.load, options.vector), strict=True))
    model, tokenizer = load_model(options)
    sites = [*(options.layers or []), *options.site]
    sampling = {"do_sample": True, "seed": options.seed} if options.sample else {}
    decoding = {} if options.choices else {"max_new_tokens": options.max_new_tokens, "do_sample": False, **sampling}
    table = sf.sweep(
        model,
        tokenizer,
        prompts,
        {name: checked(vector, model, options) for name, vector in loaded.items()},
        options.alphas,
        sites=sites or None,
        scope=scope_of(options),
        continuations=options.choices,
        metrics=options.metric or (),
        chat=False if options.raw else None,
        checkpoint=options.checkpoint,
        progress=not options.quiet,
        **decoding,
    )
    print(table)
    if options.out:
        table.to_json(options.out)
        print(f"\nWrote {options.out}.")
    if options.choices or options.metric or options.by:  # by the metric of those who ask for none, long is good
        name = options.by or table.metrics[0]
        print(f"\nbest: {table.best(name, lowest=options.lowest or lower_is_better(name, options.metric))}")


def refuse_generation(options: argparse.Namespace) -> None:
    """Options of generation do nothing where continuations are scored."""
    for given, option in ((options.metric, "--metric"), (options.sample, "--sample")):
        if given:
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
        warnings.warn(
            f"The continuation {glued!r} follows the prompt without a blank, as in {prompt[-12:] + glued!r}; write "
            f"{' ' + glued!r} if it is a word of its own.",
            SteerWarning,
            stacklevel=2,
        )


def names_of(paths: Sequence[str]) -> list[str]:
    """What the table calls the vectors: their files without folder and suffix, where that tells them apart."""
    stems = [Path(path).stem for path in paths]
    if len(set(paths)) < len(paths):
        raise DataError(f"--vector names a file twice: {' '.join(paths)}; name each once.")
    return stems if len(set(stems)) == len(stems) else list(paths)


def lower_is_better(name: str, metrics: Sequence[str] | None) -> bool:
    """Whether a metric of generated texts says of itself that less of it is better."""
    import steerfn as sf

    return name in (metrics or ()) and sf.metrics.get(name).better == "lower"
