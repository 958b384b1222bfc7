"""`steerfn bake`: a plain checkpoint with a vector in its weights, for engines that know nothing of steering."""

import argparse
import json

from steerfn.cli._options import add_model_options, add_strict, checked_vector, load_model, load_vector

HELP = "write a checkpoint that is steered by itself"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("vector", metavar="VECTOR", help="a vector file, or zoo:NAME")
    command.add_argument("out", metavar="FOLDER", help="a folder that does not exist yet, or is empty")
    command.add_argument("--alpha", type=float, default=1.0, help="strength (default: %(default)s)")
    command.add_argument(
        "--ablate", action="store_true", help="remove the vector's one direction from the whole stream instead"
    )
    add_strict(command)
    add_model_options(command)


def run(options: argparse.Namespace) -> None:
    """Bake, and say how far the result was checked."""
    import steerfn as sf
    from steerfn.engines import check_folder

    check_folder(options.out)
    vector = load_vector(options.vector)
    model, tokenizer = load_model(options)
    vector = checked_vector(vector, model, options)
    op = (
        sf.ablate(sf.discover.spread(vector, sf.layout(model).stream))
        if options.ablate
        else sf.add(vector, options.alpha)
    )
    folder = sf.bake(model, tokenizer, op, options.out)
    check = json.loads((folder / "steerfn.json").read_text(encoding="utf8"))["check"]
    print(
        f"Wrote {folder}. Loaded by stock transformers, its logits differ from live steering by "
        f"{check['difference_rms']:.2g} (root mean square), where steering moves them by {check['effect_rms']:.2g}."
    )
