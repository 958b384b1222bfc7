"""What steering costs a generated token: steered over unsteered decoding, eager and compiled, and against the rivals.

    python benchmarks/decode.py [--rounds 9] [--tokens 32] [--batches 1 8 32] [--no-compile]

SmolLM2-135M-Instruct. Each round decodes with every variant once, in an order that turns; ratios to the unsteered model
are taken within a round; the median counts. `rows` is a batch in which every row has an operator of its own. Compiled is
`generate` with a static cache, whose forward transformers compiles by itself on CUDA; on a CPU the forward is
compiled here. The rivals (a plain hook, steering-vectors, repeng) run where they are installed:
`python benchmarks/decode.py --rivals` runs all in their environment, eager.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import torch
from overhead import BLOCK, hook, table, vector

import steerfn as sf

ROOT = Path(__file__).resolve().parents[1]
TEXT = "The weather in the mountains changes quickly, and a good guide knows"


def different(model, batch: int) -> sf.Operator:
    """An operator of its own for every row: other vectors, strengths and scopes."""
    width, found = model.config.hidden_size, []
    for i in range(batch):
        direction = 1e-3 * torch.randn(width, generator=torch.Generator().manual_seed(i))
        op = sf.add(sf.SteeringVector({sf.resid_post[BLOCK]: direction}), 1 + i / 10)
        found.append(op if i % 2 else sf.at(sf.generated, op))
    return sf.rows(found)


@contextlib.contextmanager
def steering_vectors(model, v):
    from steering_vectors import SteeringVector

    with SteeringVector(layer_activations={BLOCK: v[BLOCK]}, layer_type="decoder_block").apply(model):
        yield


@contextlib.contextmanager
def repeng(model, v):
    import numpy as np

    np.float_ = np.float64  # a name that numpy 2 has dropped
    from repeng import ControlModel, ControlVector

    control = ControlModel(model, [BLOCK])
    control.set_control(ControlVector(model.config.model_type, {BLOCK: v[BLOCK].numpy()}), 1.0)
    try:
        yield
    finally:
        control.reset()
        control.unwrap()


def contexts(model, batch: int, with_rivals: bool) -> dict:
    one = vector([sf.resid_post[BLOCK]], model.config.hidden_size)
    every = vector([sf.resid_post[i] for i in range(sf.layout(model).n_layers)], model.config.hidden_size)
    own = different(model, batch)
    found = {
        "unsteered": contextlib.nullcontext,
        "steer, 1 block": lambda: sf.steer(model, one),
        "steer, all": lambda: sf.steer(model, every),
        "steer, rows": lambda: sf.steer(model, own),
        "plain hook": lambda: hook(model, one),
    }
    if with_rivals:
        found["steering-vectors"] = lambda: steering_vectors(model, one)
        found["repeng"] = lambda: repeng(model, one)
    return found


def decode(model, inputs, context, tokens: int, **options):
    def call() -> None:
        with torch.no_grad(), context():
            model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)

    return call


def main(rounds: int, tokens: int, batches: list[int], compiled: bool, with_rivals: bool) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    model, tokenizer = sf.demo_model(progress=False)
    for batch in batches:
        inputs = tokenizer([TEXT] * batch, return_tensors="pt")
        calls = {n: decode(model, inputs, c, tokens) for n, c in contexts(model, batch, with_rivals).items()}
        table(f"eager, batch {batch}, {tokens} tokens", calls, rounds)
    if not compiled:
        return
    model.generation_config.cache_implementation = "static"
    # Each variant is a graph of its own, for the prompt and for a token, at each batch size: 8 graphs is the default limit.
    torch._dynamo.config.recompile_limit = 8 * len(batches)
    model.forward = torch.compile(model.forward, dynamic=False)
    for batch in batches:
        inputs = tokenizer([TEXT] * batch, return_tensors="pt")
        chosen = contexts(model, batch, False)
        del chosen["plain hook"]  # a hook added after torch.compile is ignored
        calls = {n: decode(model, inputs, c, tokens) for n, c in chosen.items()}
        table(f"compiled, static cache, batch {batch}, {tokens} tokens", calls, rounds)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--tokens", type=int, default=32)
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    arguments.add_argument("--no-compile", action="store_true")
    arguments.add_argument("--rivals", action="store_true", help="in the rivals' environment, with them, eager")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.rivals and not chosen.inside:
        from discovery import rivals

        path = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
        command = [str(rivals()), __file__, *sys.argv[1:], "--inside", "--no-compile"]
        sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode)
    main(chosen.rounds, chosen.tokens, chosen.batches, not chosen.no_compile, chosen.rivals)
