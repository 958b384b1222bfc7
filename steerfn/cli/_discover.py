"""`steerfn discover`: a steering vector from texts, or how good one would be at every layer."""

import argparse
from typing import Any

from steerfn.cli._before import check_files, sites_of
from steerfn.cli._options import add_list, add_model_options, load_model
from steerfn.values import DataError, visible_line

METHODS = ("mean_difference", "pca", "lat", "linear_probe", "lda", "caa")


HELP = "make a vector from texts"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    texts = command.add_argument_group("texts (one of three)")
    texts.add_argument("--positive", metavar="FILE", help="texts that show the behaviour, one a line or a JSON list")
    texts.add_argument("--negative", metavar="FILE", help="texts that show its opposite")
    texts.add_argument("--pairs", metavar="FILE", help="pairs or items in any format of steerfn.datasets.from_file")
    texts.add_argument("--dataset", metavar="NAME", help="a set that ships with steerfn, such as 'sentiment'")
    texts.add_argument(
        "--sides",
        nargs=2,
        metavar=("POSITIVE", "NEGATIVE"),
        help="with --pairs: the names of its positive and its negative column, list or label, where they are not known",
    )
    command.add_argument("--method", choices=METHODS, default="mean_difference", help="(default: %(default)s)")
    add_list(
        command,
        "--layer",
        "--layers",
        kind=int,
        metavar="N",
        help="blocks to read at, resid_post (default: the middle)",
    )
    command.add_argument(
        "--site", action="append", default=[], help="any other site, such as 'attn_out[3]'; may be repeated"
    )
    command.add_argument(
        "--profile", action="store_true", help="show how good every layer is, and take the best unless --layer is given"
    )
    command.add_argument(
        "--position",
        help="'last' token, 'mean' over tokens but attention sinks, 'mean_all', 'answer' (where a pair differs), or an "
        "index (default: 'last', for caa 'answer')",
    )
    command.add_argument("--batch-size", default="auto", help="texts at once (default: %(default)s)")
    command.add_argument("--chat", action="store_true", help="put the texts into the chat template")
    command.add_argument("--quality", action="store_true", help="cross-validate, and keep the numbers in the vector")
    command.add_argument("--checkpoint", metavar="FILE", help="keep how far it has come, to go on after a break")
    command.add_argument("--explain", action="store_true", help="show which token is read of the first texts")
    command.add_argument("--out", metavar="FILE", help="the vector: a name ending in .safetensors or .json")
    add_model_options(command)


def run(options: argparse.Namespace) -> None:
    """Read the texts, compute, save, say what was made."""
    import steerfn as sf
    from steerfn.run import WORDS, limit_of
    from steerfn.values.files import check_target

    texts = contrast_set(options)
    if not (options.out or options.profile):
        raise DataError("discover needs --out FILE for the vector, or --profile.")
    if options.method == "caa" and (options.profile or not texts.items):
        why = "--profile goes with another method" if texts.items else "these texts are not questions with two answers"
        raise DataError(f"--method caa reads questions with two answers, read at the answer: {why}.")
    if options.out:
        check_target(options.out)
    check_files(options, "checkpoint")
    sites = sites_of(options.layer, options.site)
    batch_size, position = number_or_word(options.batch_size), number_or_word(options.position or "last")
    limit_of(batch_size)
    if isinstance(position, str) and position not in WORDS:
        raise DataError(f"--position must be an index or one of {', '.join(WORDS)}, got {position!r}.")
    model, tokenizer = load_model(options)
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "checkpoint": options.checkpoint,
    }
    if options.chat or options.method != "caa":  # which uses the template where there is one
        common["chat"] = options.chat
    if options.position is not None:
        common["position"] = position
    if options.profile:
        profile = sf.discover.layer_profile(
            model, tokenizer, texts.positive, texts.negative, method=options.method, explain=options.explain, **common
        )
        print(profile)
        if not options.out:
            return
        if not sites:
            return report(profile.vector(), texts, options.out)
    common |= {"quality": options.quality or options.profile, "explain": options.explain and not options.profile}
    sites = sites or [sf.layout(model).n_layers // 2]
    method = getattr(sf, options.method)
    sides = (texts.items,) if options.method == "caa" else (texts.positive, texts.negative)
    report(method(model, tokenizer, *sides, sites, **common), texts, options.out)


def report(vector: Any, texts: Any, out: str) -> None:
    """Save a vector and say what it is."""
    import steerfn as sf

    path = sf.save(vector, out)
    print(
        f"{visible_line(str(path))}: {vector}, from {len(texts.positive)} positive and {len(texts.negative)} negative "
        "texts"
    )
    if "quality" in vector.metadata:
        for site, quality in sf.quality(vector).items():
            print(f"  {site}: {quality}")


def number_or_word(text: str) -> int | str:
    """An int where the text is one."""
    try:
        return int(text)
    except ValueError:
        return text


def contrast_set(options: argparse.Namespace) -> Any:
    """The texts that the options name."""
    import steerfn as sf

    two = bool(options.positive or options.negative)
    if two + bool(options.pairs) + bool(options.dataset) != 1 or (two and not (options.positive and options.negative)):
        raise DataError(
            "discover needs --positive FILE and --negative FILE, or --pairs FILE, or --dataset NAME "
            f"({', '.join(sf.datasets.names())})."
        )
    if options.dataset:
        return sf.datasets.load(options.dataset)
    if options.pairs:
        return sf.datasets.from_file(options.pairs, sides=options.sides)
    return sf.datasets.from_file(options.positive, negative=options.negative)
