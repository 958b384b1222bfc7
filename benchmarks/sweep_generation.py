"""What a sweep of generations costs: many configurations as rows of one batch, against running them one by one.

    python benchmarks/sweep_generation.py [--rounds 5] [--tokens 32] [--configs 16 64]

SmolLM2-135M-Instruct, one prompt, `--tokens` greedy tokens for every configuration: four blocks with as many strengths
each as make up the number. One by one is all that the rivals can do: a context or a hook around one `generate` after
another. All texts are compared.
"""

import argparse
import contextlib
import statistics
import time

import torch

import steerfn as sf

PROMPT = "Tell me about a walk you took last weekend."
LAYERS = (8, 12, 16, 20)


@contextlib.contextmanager
def hook(model, direction, layer, alpha):
    """A plain forward hook: the cheapest of all ways to run one configuration."""

    def add(module, args, out):
        return (out[0] + alpha * direction, *out[1:]) if isinstance(out, tuple) else out + alpha * direction

    handle = model.model.layers[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def compare(model, tokenizer, count, tokens, rounds, target):
    generator = torch.Generator().manual_seed(0)
    directions = {n: torch.randn(model.config.hidden_size, generator=generator) / 8 for n in LAYERS}
    v = sf.SteeringVector({sf.resid_post[n]: d for n, d in directions.items()})
    strengths = [(i + 1) / 2 for i in range(count // len(LAYERS))]
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)

    def ours():
        table = sf.sweep(model, tokenizer, PROMPT, v, strengths, sites=list(LAYERS), progress=False, **options)
        return [row[0] for row in table.texts]

    def one_by_one():
        texts = []
        for layer in LAYERS:
            for alpha in strengths:
                with torch.no_grad(), hook(model, directions[layer], layer, alpha):
                    out = model.generate(**inputs, **options)
                texts.append(tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
        return texts

    ratios, seconds, same = [], [], []
    ours()
    for _ in range(rounds):
        start = time.perf_counter()
        mine = ours()
        middle = time.perf_counter()
        theirs = one_by_one()
        end = time.perf_counter()
        seconds.append(middle - start)
        ratios.append((end - middle) / (middle - start))
        same.append(sum(a == b for a, b in zip(mine, theirs, strict=True)))
    print(
        f"{count:>3} configurations x {tokens} tokens: {statistics.median(seconds):.2f} s in one batch, "
        f"{statistics.median(ratios):.2f} x over one by one ({min(ratios):.2f} - {max(ratios):.2f}; median of {rounds}, "
        f"target {target} x); {min(same)} of {count} texts the same",
        flush=True,
    )


def main(rounds, tokens, configs):
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    model, tokenizer = sf.demo_model(progress=False)
    for count in configs:
        compare(model, tokenizer, count, tokens, rounds, {16: 7, 64: 12}.get(count, "no"))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=32)
    arguments.add_argument("--configs", type=int, nargs="+", default=[16, 64])
    main(**vars(arguments.parse_args()))
