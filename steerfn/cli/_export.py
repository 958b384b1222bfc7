"""`steerfn export`: a vector in another format, for another engine."""

import argparse
from pathlib import Path

from steerfn.cli._options import load_vector
from steerfn.values import visible_line

HELP = "write a vector for another engine"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("vector", metavar="VECTOR", help="a vector file, or zoo:NAME")
    command.add_argument(
        "out",
        metavar="OUT",
        help="the file to write: .gguf for llama.cpp, .pt for lm-evaluation-harness, .safetensors or .json",
    )
    command.add_argument("--alpha", type=float, default=1.0, help="strength, folded in (default: %(default)s)")
    command.add_argument(
        "--blocks",
        metavar="NAME",
        help="a model (hub name or folder), whose blocks a .pt file names; needed where they are not called 'layers'",
    )
    command.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def run(options: argparse.Namespace) -> None:
    """Read the vector and write it again."""
    import steerfn as sf
    from steerfn.engines import check_target
    from steerfn.values import FileError

    vector, out = load_vector(options.vector), Path(options.out)
    if out.exists() and not options.overwrite:
        raise FileError(f"'{out}' exists; name another file, or pass --overwrite.")
    if out.suffix == ".pt":
        check_target(out)
        model = sf.from_pretrained(options.blocks)[0] if options.blocks else None
        sf.to_lm_eval(vector, out, options.alpha, model=model)
    else:
        sf.save(vector, out, alpha=options.alpha)
    print(visible_line(f"Wrote {out}: {vector!r}, alpha {options.alpha:g}."))
