"""`steerfn demo`: twelve sentences become a steering vector, and the model's answers change with alpha."""

import argparse
import shlex
import shutil
import sys
import textwrap
import time

from steerfn.cli._options import add_list

HAPPY = (
    "I am so happy today, everything is wonderful!",
    "What a beautiful morning, I feel full of joy.",
    "I love my life and I smile at everyone.",
    "This is the best day ever, I am delighted.",
    "We laughed and danced all night, it was fantastic.",
    "I feel grateful and cheerful about the future.",
)
SAD = (
    "I am so sad today, everything is terrible.",
    "What a gloomy morning, I feel full of sorrow.",
    "I hate my life and I cry alone.",
    "This is the worst day ever, I am miserable.",
    "We wept and mourned all night, it was dreadful.",
    "I feel hopeless and depressed about the future.",
)
PROMPTS = ("How was your day?", "Tell me about the weather.")
ALPHAS = (-2.0, 0.0, 2.0)
SITE = 14
READY = "formality"
"""A vector of the zoo."""
TOKENS = 32
INDENT = " " * 5


HELP = "the whole idea on a real model, in a minute"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_list(
        command,
        "--alphas",
        kind=float,
        default=list(ALPHAS),
        metavar="A",
        help="strengths to compare, such as -2,0,2 (the default)",
    )
    command.add_argument("--prompt", action="append", metavar="TEXT", help="ask this instead (may be repeated)")
    command.add_argument(
        "--save", default="happy.safetensors", metavar="FILE", help="where the vector goes (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Make the vector, show what it does, and prove that it leaves no trace."""
    import torch

    import steerfn as sf
    from steerfn.values.files import check_target

    check_target(options.save)
    started = time.perf_counter()
    width = max(60, min(100, shutil.get_terminal_size().columns))
    prompts = options.prompt or list(PROMPTS)
    model, tokenizer = sf.demo_model()
    ids = tokenizer("The weather today", return_tensors="pt").to(model.device)
    with torch.no_grad():
        before = model(**ids).logits

    print(f"\n{model.config._name_or_path}: {sf.layout(model).n_layers} blocks, d_model {sf.layout(model).d_model}")
    vector = sf.mean_difference(model, tokenizer, positive=HAPPY, negative=SAD, sites=SITE, position="mean")
    site = vector.sites[0]
    print(f"\n1. A steering vector from {len(HAPPY)} happy and {len(SAD)} sad sentences")
    print(f"     v = mean(happy) - mean(sad) at {site}   |v| = {vector.magnitude[site]:.2f}")
    print(f'     happy: "{HAPPY[0]}"\n     sad:   "{SAD[0]}"')

    print("\n2. The same prompts, with alpha * v added at every token (greedy)")
    for prompt in prompts:
        print(_quote(prompt, width))
        # Every strength is a row of one batch.
        answers = sf.generate(
            model,
            tokenizer,
            [prompt] * len(options.alphas),
            [sf.add(vector, a) for a in options.alphas],
            max_new_tokens=TOKENS,
        )
        for alpha, answer in zip(options.alphas, answers, strict=True):
            print(_answer(alpha, answer, width))

    ready = sf.zoo.load(READY, model=model)
    evidence = ready.metadata["evidence"]
    print(f"\n3. A vector that comes with its evidence: sf.zoo.load({READY!r})")
    print(textwrap.fill(f"its report: {evidence['headline']}", width, initial_indent=INDENT, subsequent_indent=INDENT))
    print(_quote(prompts[0], width))
    [answer] = sf.generate(model, tokenizer, prompts[0], sf.add(ready, evidence["alpha"]), max_new_tokens=TOKENS)
    print(_answer(evidence["alpha"], answer, width))

    with torch.no_grad():
        with sf.steer(model, vector, alpha=options.alphas[-1]):
            steered = model(**ids).logits
        after = model(**ids).logits
    same, moved = torch.equal(before, after), (steered - before).abs().max().item()
    print("\n4. And back")
    print(f"     inside `with sf.steer(...)` the logits moved by up to {moved:.2f}; after it they are")
    verdict = "bit for bit what they were" if same else "NOT WHAT THEY WERE: please report this"
    print(f"     {verdict} ({before.numel():,} numbers compared).")

    path = shlex.quote(str(sf.save(vector, options.save)))
    print(f"\nSaved {path}. Next:")
    print(f'     steerfn generate --vector {path} --alpha 2 "Tell me about the sea."')
    print(f"     steerfn inspect {path}")
    print("     steerfn zoo list")
    print("     steerfn discover --positive pos.txt --negative neg.txt --out mine.safetensors")
    print(f"\n({time.perf_counter() - started:.0f} s)")
    if not same:
        sys.exit(1)


def _quote(prompt: str, width: int) -> str:
    return "\n" + textwrap.indent(textwrap.fill(f'"{prompt}"', width - len(INDENT)), INDENT)


def _answer(alpha: float, text: str, width: int) -> str:
    label = f"{INDENT}alpha {alpha:+5.1f}  | "
    text = " ".join(text.split()) + " ..."
    return textwrap.fill(text, width, initial_indent=label, subsequent_indent=" " * (len(label) - 2) + "| ")
