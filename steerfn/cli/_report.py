"""`steerfn report`: one page on one vector that a reviewer can sign."""

import argparse
import os
import shlex
from typing import Any

from steerfn.cli._before import check_files, metrics_of
from steerfn.cli._options import (
    add_list,
    add_model_options,
    add_steering_options,
    check_decoding,
    decoding_of,
    lines,
    load_model,
    scope_of,
    write_files,
)
from steerfn.values import DataError
from steerfn.values.files import is_hub

FILES = ("vector", "data", "negative", "prompts", "passages", "questions", "out", "json")
"""Options that name a file, of which the command in the report tells the name and not where it lies."""
UNTOLD = ("run", "quiet", "json")
"""Options that do not change what is in the report."""


HELP = "a page on a vector, to be reviewed and signed"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("vector", metavar="VECTOR", help="a vector file, or hf://user/name")
    command.add_argument(
        "--data",
        metavar="FILE",
        help="texts of both sides, in any format of steerfn.datasets.from_file; best those that did not make it",
    )
    command.add_argument("--negative", metavar="FILE", help="the other side, where --data is a list of texts")
    command.add_argument("--dataset", metavar="NAME", help="a set that ships with steerfn, such as 'sentiment'")
    command.add_argument("--held-out", type=float, metavar="PART", help="take only this part of the data, held out")
    command.add_argument("--prompts", metavar="FILE", help="prompts, one a line (default: 40 neutral ones)")
    command.add_argument("--passages", metavar="FILE", help="plain text for side effects, one a line (default: 16)")
    command.add_argument("--questions", metavar="FILE", help="questions with two answers, to see if knowledge suffers")
    command.add_argument("--alpha", type=float, default=1.0, help="strength (default: %(default)s)")
    add_list(
        command,
        "--metric",
        metavar="NAME",
        help="what to measure: name at least one of the behaviour, such as sentiment (default: length, distinct_n, "
        "repetition, which describe the text only)",
    )
    command.add_argument(
        "--controls", type=int, default=40, metavar="N", help="random vectors to compare with (default: %(default)s)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="texts a side, prompts and passages at most")
    add_steering_options(command)
    add_list(command, "--seeds", kind=int, metavar="N", help="with --sample (default: 0)")
    command.add_argument("--title", help="of the page")
    command.add_argument("--out", metavar="FILE", default="report.html", help="the page (default: %(default)s)")
    command.add_argument("--json", metavar="FILE", help="also write everything that was measured")
    add_model_options(command)


def run(options: argparse.Namespace) -> None:
    """Measure, write the page, and say what the verdict is."""
    import steerfn as sf
    from steerfn.evaluate.protocols import questions_of

    check_decoding(options)
    check_files(options, "out", "json")
    chosen = metrics_of(options)
    data = data_of(options)
    prompts = lines(options.prompts) if options.prompts else None
    passages = lines(options.passages) if options.passages else None
    if options.questions:
        questions_of(options.questions, "questions")
    sf.load(options.vector)
    model, tokenizer = load_model(options)
    result = sf.report(
        model,
        tokenizer,
        options.vector,
        data,
        prompts=prompts,
        passages=passages,
        questions=options.questions,
        **chosen,
        alpha=options.alpha,
        scope=scope_of(options),
        controls=options.controls,
        limit=options.limit,
        seeds=tuple(options.seeds or (0,)),
        strict=options.strict,
        title=options.title,
        call=command_of(options),
        **decoding_of(options),
    )
    print(result)
    write_files((result.save, options.out), (result.to_json, options.json))


def data_of(options: argparse.Namespace) -> Any:
    """The texts that the options name."""
    import steerfn as sf

    if bool(options.data) == bool(options.dataset):
        raise DataError(
            f"report needs --data FILE, or --dataset NAME ({', '.join(sf.datasets.names())}): the texts on which the "
            "vector is judged."
        )
    if options.negative and not options.data:
        raise DataError("--negative is the other side of --data; name both.")
    if options.dataset:
        data = sf.datasets.load(options.dataset)
    else:
        data = sf.datasets.from_file(options.data, negative=options.negative)
    return data if options.held_out is None else data.split(held_out=options.held_out)[1]


def command_of(options: argparse.Namespace) -> str:
    """The command as one line, to be run again beside the same files."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    usual = vars(parser.parse_args(["-"]))
    vector = options.vector if is_hub(options.vector) else os.path.basename(options.vector)
    words = ["steerfn", "report", vector]
    for name, value in vars(options).items():
        if name == "vector" or name in UNTOLD or value == usual[name]:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if name in FILES or (name == "model" and os.path.isdir(value)):
            value = os.path.basename(os.path.normpath(value))
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return shlex.join(words)
