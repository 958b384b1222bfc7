"""`steerfn inspect`: what a vector file says of itself, or where a model keeps its sites."""

import argparse
import json
from typing import Any

from steerfn._visible import visible_line
from steerfn.cli._model import add_model_options, load_model


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("inspect", help="show a vector file or a model's layout", description=__doc__)
    command.add_argument("file", nargs="?", help="a vector file; without it, the model's layout")
    command.add_argument("--json", action="store_true", help="as JSON")
    add_model_options(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print a vector's facts, or a model's layout."""
    import steerfn as sf

    if options.file is None:
        model, _ = load_model(options)
        found = sf.layout(model)
        text = json.dumps(
            {"model": found.model, "n_layers": found.n_layers, "d_model": found.d_model, "stack": found.stack}, indent=2
        )
        print(text if options.json else found)
        return
    vector, about = sf.load(options.file), sf.describe(options.file)
    if options.json:
        print(json.dumps({**about, "magnitude": {str(s): n for s, n in vector.magnitude.items()}}, indent=2))
        return
    form, width = f"{about['format']} (version {about['version']})", len(vector.directions[0])
    print(f"{visible_line(options.file)}: {form}, {vector.dtype}, width {width}")
    for site, norm in vector.magnitude.items():
        print(f"  {str(site):<16} |v| = {norm:.4g}")
    for key, value in vector.metadata.items():
        print(visible_line(f"  {key}: {json.dumps(value) if not isinstance(value, str) else value}"))
    versions = ", ".join(f"{name} {version}" for name, version in (about["versions"] or {}).items())
    print(visible_line(f"  written by: {versions}"))
    print(f"  sha256: {about['sha256']}")
