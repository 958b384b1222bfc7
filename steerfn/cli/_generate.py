"""`steerfn generate`: text from a model, steered by a saved vector or not."""

import argparse
from typing import Any

from steerfn._visible import visible
from steerfn.cli._generation import add_generation_options, checked, prompts_of, scope_of
from steerfn.cli._lists import add_list
from steerfn.cli._model import add_model_options, load_model


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("generate", help="generate text, steered or not", description=__doc__)
    add_generation_options(command)
    command.add_argument("--vector", metavar="FILE", help="a vector file (default: unsteered)")
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
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Generate for every prompt and every alpha."""
    import steerfn as sf

    prompts, scope = prompts_of(options), scope_of(options) or sf.everywhere
    vector = sf.load(options.vector) if options.vector else None
    model, tokenizer = load_model(options)
    if vector is not None:
        vector = checked(vector, model, options)
    for alpha in options.alpha if vector is not None else [None]:
        op = None if vector is None else sf.at(scope, sf.add(vector, alpha))
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
            how = "unsteered" if alpha is None else f"alpha {alpha:+g}"
            print(f"[{how}] {visible(prompt)}\n{visible(text.strip())}\n")
