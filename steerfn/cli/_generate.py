"""`steerfn generate`: text from a model, steered by a saved vector or not."""

import argparse

from steerfn.cli._options import (
    add_generation_options,
    add_list,
    add_model_options,
    checked_vector,
    decoding_of,
    load_model,
    load_vector,
    prompts_of,
    scope_of,
)
from steerfn.values import visible

HELP = "generate text, steered or not"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_generation_options(command)
    command.add_argument("--vector", metavar="FILE", help="a vector file, or zoo:NAME (default: unsteered)")
    add_list(
        command,
        "--alpha",
        "--alphas",
        kind=float,
        default=[1.0],
        metavar="A",
        help="strength; several, such as -2,0,2, are shown one after the other (default: 1)",
    )
    command.add_argument("--seed", type=int, default=0, help="for --sample (default: %(default)s)")
    add_model_options(command)


def run(options: argparse.Namespace) -> None:
    """Generate for every prompt and every alpha."""
    import steerfn as sf

    prompts, scope = prompts_of(options), scope_of(options) or sf.everywhere
    vector = load_vector(options.vector) if options.vector else None
    model, tokenizer = load_model(options)
    if vector is not None:
        vector = checked_vector(vector, model, options)
    for alpha in options.alpha if vector is not None else [None]:
        op = None if vector is None or alpha is None else sf.at(scope, sf.add(vector, alpha))
        out = sf.generate(
            model,
            tokenizer,
            prompts,
            op,
            seed=options.seed if options.sample else None,
            **decoding_of(options),
        )
        for prompt, text in zip(prompts, out, strict=True):
            how = "unsteered" if alpha is None else f"alpha {alpha:+g}"
            print(f"[{how}] {visible(prompt)}\n{visible(text.strip())}\n")
