"""`steerfn inspect`: what a vector file says of itself, or where a model keeps its sites."""

import argparse
import json

from steerfn.cli._options import add_model_options, load_model
from steerfn.values import visible_line

HELP = "show a vector file or a model's layout"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("file", nargs="?", help="a vector file; without it, the model's layout")
    command.add_argument("--json", action="store_true", help="as JSON")
    add_model_options(command)


def run(options: argparse.Namespace) -> None:
    """Print a vector's facts, or a model's layout."""
    import steerfn as sf

    if options.file is None:
        model, _ = load_model(options)
        model_layout = sf.layout(model)
        print(model_layout.to_json() if options.json else model_layout)
        return
    vector, about = sf.load(options.file), sf.files.describe(options.file)
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
