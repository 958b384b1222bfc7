"""`steerfn discover`: a steering vector from two text files, or from a JSONL of pairs."""

import argparse
import json
from pathlib import Path
from typing import Any

from steerfn._errors import DataError
from steerfn.cli._main import add_model_options, load_model


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("discover", help="make a vector from texts", description=__doc__)
    command.add_argument("--positive", metavar="FILE", help="texts that show the behaviour, one a line")
    command.add_argument("--negative", metavar="FILE", help="texts that show its opposite, one a line")
    command.add_argument("--pairs", metavar="FILE", help='instead: JSONL of {"positive": ..., "negative": ...}')
    command.add_argument(
        "--layer", type=int, action="append", help="block to read at, resid_post; may be repeated (default: the middle)"
    )
    command.add_argument(
        "--site", action="append", default=[], help="any other site, such as 'attn_out[3]'; may be repeated"
    )
    command.add_argument(
        "--position", default="last", help="'last' token, 'mean' over tokens, or an index (default: %(default)s)"
    )
    command.add_argument("--batch-size", default="auto", help="texts at once (default: %(default)s)")
    command.add_argument("--chat", action="store_true", help="put the texts into the chat template")
    command.add_argument(
        "--out", required=True, metavar="FILE", help="the vector: a name ending in .safetensors or .json"
    )
    add_model_options(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Read the texts, compute, save, say what was made."""
    import steerfn as sf

    positive, negative = texts(options)
    model, tokenizer = load_model(options)
    sites = [*(options.layer or []), *options.site] or [sf.layout(model).n_layers // 2]
    vector = sf.mean_difference(
        model,
        tokenizer,
        positive=positive,
        negative=negative,
        sites=sites,
        position=number_or_word(options.position),
        batch_size=number_or_word(options.batch_size),
        chat=options.chat,
        progress=not options.quiet,
    )
    path = sf.save(vector, options.out)
    print(f"{path}: {vector}, from {len(positive)} positive and {len(negative)} negative texts")


def number_or_word(text: str) -> int | str:
    """An int where the text is one."""
    try:
        return int(text)
    except ValueError:
        return text


def texts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The positive and the negative texts that the options name."""
    if options.pairs and not (options.positive or options.negative):
        return pairs(options.pairs)
    if options.pairs or not (options.positive and options.negative):
        raise DataError("discover needs --positive FILE and --negative FILE, or --pairs FILE.")
    return lines(options.positive), lines(options.negative)


def read(path: str) -> str:
    """A text file, or a clear refusal."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}; check the name.") from None
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not UTF-8 text; save it as UTF-8.") from None


def lines(path: str) -> list[str]:
    """The lines of a file that are not blank."""
    found = [line.strip() for line in read(path).splitlines() if line.strip()]
    if not found:
        raise DataError(f"'{path}' holds no text; write one example a line.")
    return found


def pairs(path: str) -> tuple[list[str], list[str]]:
    """The two sides of a JSONL of pairs."""
    positive, negative = [], []
    for number, line in enumerate(read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            pair = json.loads(line)
        except ValueError as error:
            raise DataError(f"'{path}', line {number} is not JSON ({error}).") from None
        if not isinstance(pair, dict) or not all(isinstance(pair.get(k), str) for k in ("positive", "negative")):
            raise DataError(f'\'{path}\', line {number} is not {{"positive": "...", "negative": "..."}}.')
        positive.append(pair["positive"])
        negative.append(pair["negative"])
    if not positive:
        raise DataError(f"'{path}' holds no pairs.")
    return positive, negative
