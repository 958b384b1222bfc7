"""What steering costs: time of a steered model over the unsteered one, in one run, on SmolLM2-135M.

    python benchmarks/overhead.py [--rounds 9] [--tokens 64]

Every figure is the median over rounds of a ratio taken within one round: each round times the unsteered model and every
variant one after the other, in an order that turns from round to round. The spread is the quartiles.
`hook` is the rival: a plain `register_forward_hook` that adds the same vector to the same block.
"""

import argparse
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch

import steerfn as sf

BLOCK = 14


def vector(sites: list[sf.Site], width: int) -> sf.SteeringVector:
    # Small, so that greedy decoding goes on as it would and every variant does the same work.
    return sf.SteeringVector(
        {site: 1e-3 * torch.randn(width, generator=torch.Generator().manual_seed(0)) for site in sites}
    )


@contextlib.contextmanager
def hook(model, v):
    direction = v[BLOCK]

    def forward_hook(module, args, out):
        return (out[0] + direction, *out[1:]) if isinstance(out, tuple) else out + direction

    handle = model.model.layers[BLOCK].register_forward_hook(forward_hook)
    try:
        yield
    finally:
        handle.remove()


def table(title: str, variants: dict[str, Callable[[], None]], rounds: int) -> None:
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        variants[name]()  # warm up
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        gc.collect()
        for name in order:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)
    base = seconds[names[0]]
    print(f"\n{title}: unsteered {statistics.median(base) * 1e3:.0f} ms (median of {rounds})")
    print(f"  {'variant':<14}{'ratio':>8}{'quartiles':>18}")
    for name in names[1:]:
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  {name:<14}{middle:>8.3f}{f'{low:.3f} - {high:.3f}':>18}")


def compare(model, tokenizer, rounds: int, tokens: int) -> None:
    one = vector([sf.resid_post[BLOCK]], model.config.hidden_size)
    every = vector([sf.resid_post[i] for i in range(sf.layout(model).n_layers)], model.config.hidden_size)
    pure = sf.functional(model)
    op = sf.add(one)
    contexts = {
        "unsteered": lambda: contextlib.nullcontext(),
        "hook, 1 block": lambda: hook(model, one),
        "steer, 1 block": lambda: sf.steer(model, one),
        "steer, all": lambda: sf.steer(model, every),
    }
    texts = ["The weather in the mountains changes quickly, and a good guide knows"] * 8

    def decode(batch: int) -> Callable[[Callable], Callable[[], None]]:
        inputs = tokenizer(texts[:batch], return_tensors="pt")

        def run(context) -> Callable[[], None]:
            def call() -> None:
                with torch.no_grad(), context():
                    model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

            return call

        return run

    for batch in (1, 8):
        run = decode(batch)
        table(f"greedy decode of {tokens} tokens, batch {batch}", {n: run(c) for n, c in contexts.items()}, rounds)

    ids = torch.randint(100, 40_000, (4, 128), generator=torch.Generator().manual_seed(0))

    def forward(context) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad(), context():
                model(ids)

        return call

    def functional() -> None:
        with torch.no_grad():
            pure(op, ids)

    variants = {n: forward(c) for n, c in contexts.items()} | {"functional": functional}
    table("forward of 4 x 128 tokens", variants, rounds)

    for name, v in (("1 block", one), ("all blocks", every)):
        took = []
        for _ in range(200):
            start = time.perf_counter()
            with sf.steer(model, v):
                pass
            took.append(time.perf_counter() - start)
        print(f"\nentering and leaving a context, {name}: {statistics.median(took) * 1e6:.0f} us (median of 200)")
    held = sum(v.directions[i].numel() * 4 * 2 for v in (one,) for i in range(len(v.directions)))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"\nmemory of one steered block: {held} bytes of vector and scaled copy, {held / size:.6%} of the model")


def imports() -> None:
    code = "import time; s = time.perf_counter(); import torch; m = time.perf_counter(); import steerfn; e = time.perf_counter(); print((e - m) / (m - s))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as installed: compiled once
    with tempfile.TemporaryDirectory() as compiled:
        environment["PYTHONPYCACHEPREFIX"] = compiled
        command = [sys.executable, "-c", code]
        runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(8)]
    ratios = [float(run.stdout) for run in runs[1:]]
    print(f"\nimport steerfn costs {statistics.median(ratios):.1%} over import torch (median of 7)")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--tokens", type=int, default=64)
    chosen = arguments.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    imports()
    compare(*sf.demo_model(), chosen.rounds, chosen.tokens)
