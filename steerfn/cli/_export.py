"""`steerfn export`: a vector in another format, for another engine."""

import argparse
from pathlib import Path
from typing import Any

from steerfn._visible import visible_line


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("export", help="write a vector for another engine", description=__doc__)
    command.add_argument("vector", metavar="VECTOR", help="a vector file")
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
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Read the vector and write it again."""
    import steerfn as sf
    from steerfn._errors import FileError

    vector, out = sf.load(options.vector), Path(options.out)
    if out.exists() and not options.overwrite:
        raise FileError(f"'{out}' exists; name another file, or pass --overwrite.")
    if out.suffix == ".pt":
        model = sf.from_pretrained(options.blocks)[0] if options.blocks else None
        sf.to_lm_eval(vector, out, options.alpha, model=model)
    else:
        sf.save(vector, out, alpha=options.alpha)
    print(visible_line(f"Wrote {out}: {vector!r}, alpha {options.alpha:g}."))
