"""`steerfn generate`: text from a model, steered by a saved vector or not."""

import argparse
import sys
from typing import Any

from steerfn._errors import DataError
from steerfn.cli._lines import lines
from steerfn.cli._model import add_model_options, load_model

SCOPES = ("everywhere", "prompt", "generated", "last_prompt_token")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("generate", help="generate text, steered or not", description=__doc__)
    command.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; without any, the lines of stdin")
    command.add_argument("--file", help="prompts from a file, one a line")
    command.add_argument("--vector", metavar="FILE", help="a vector file (default: unsteered)")
    command.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        default=[1.0],
        help="strength; several are shown one after the other (default: 1)",
    )
    command.add_argument("--scope", choices=SCOPES, default="everywhere", help="tokens to steer (default: %(default)s)")
    command.add_argument(
        "--max-new-tokens", type=int, default=40, metavar="N", help="tokens to generate at most (default: %(default)s)"
    )
    command.add_argument("--sample", action="store_true", help="sample instead of greedy decoding")
    command.add_argument("--seed", type=int, default=0, help="for --sample (default: %(default)s)")
    command.add_argument("--raw", action="store_true", help="no chat template")
    command.add_argument("--strict", action="store_true", help="refuse a vector made for another model")
    add_model_options(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Generate for every prompt and every alpha."""
    import steerfn as sf

    prompts = [*options.prompts, *(lines(options.file) if options.file else [])]
    if not prompts:
        if sys.stdin.isatty():
            raise DataError("There is no prompt; write one after the command, name a --file, or pipe lines in.")
        prompts = [line.strip() for line in sys.stdin if line.strip()]
    if not prompts:
        raise DataError("There is no prompt; stdin was empty.")
    if options.max_new_tokens < 1:
        raise DataError(f"--max-new-tokens is {options.max_new_tokens}; use 1 or more.")
    vector = sf.load(options.vector) if options.vector else None
    model, tokenizer = load_model(options)
    if vector is not None:
        sf.check_match(vector, model, strict=options.strict)
        vector = vector.with_metadata(model=None)  # checked, and told, once
    for alpha in options.alpha if vector is not None else [None]:
        op = None if vector is None else sf.at(getattr(sf, options.scope), sf.add(vector, alpha))
        out = sf.generate(
            model,
            tokenizer,
            prompts,
            op,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed if options.sample else None,
            do_sample=options.sample,
            chat=False if options.raw else None,
        )
        for prompt, text in zip(prompts, out, strict=True):
            print(f"[{'unsteered' if alpha is None else f'alpha {alpha:+g}'}] {prompt}\n{text.strip()}\n")
