"""What steering costs on a GPU: a Llama of 1.2 B random bf16 parameters, eager and compiled.

    python benchmarks/gpu.py [--rounds 9] [--tokens 64]

Prints the GPU's name and a table of ratios to the unsteered model, as `overhead.py` does on a CPU.
"""

import argparse
import contextlib
import sys
import time

import torch
from overhead import BLOCK, hook, table, vector

import steerfn as sf


def synchronised(call):
    def run():
        call()
        torch.cuda.synchronize()

    return run


def main(rounds: int, tokens: int) -> None:
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; benchmarks/overhead.py measures on a CPU.")
    from transformers import LlamaConfig, LlamaForCausalLM

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, eos_token_id=None,
    )  # fmt: skip
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    one = vector([sf.resid_post[BLOCK]], config.hidden_size)
    every = vector([sf.resid_post[i] for i in range(16)], config.hidden_size)
    contexts = {
        "unsteered": lambda: contextlib.nullcontext(),
        "hook, 1 block": lambda: hook(model, one.to("cuda", torch.bfloat16)),
        "steer, 1 block": lambda: sf.steer(model, one),
        "steer, all": lambda: sf.steer(model, every),
    }
    for batch in (1, 8):
        ids = torch.randint(3, 32000, (batch, 16), device="cuda")

        def decode(context, ids=ids):
            def call():
                with torch.no_grad(), context():
                    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)

            return synchronised(call)

        table(f"greedy decode of {tokens} tokens, batch {batch}", {n: decode(c) for n, c in contexts.items()}, rounds)

    ids = torch.randint(3, 32000, (4, 512), device="cuda")
    pure, op = sf.functional(model), sf.add(one)

    def forward(context, run=model):
        def call():
            with torch.no_grad(), context():
                run(ids, use_cache=False)

        return synchronised(call)

    variants = {n: forward(c) for n, c in contexts.items()}
    variants["functional"] = forward(contextlib.nullcontext, lambda *a, **k: pure(op, *a, **k))
    table("eager forward of 4 x 512 tokens", variants, rounds)
    compiled = torch.compile(model)
    del contexts["hook, 1 block"]  # a hook added after torch.compile is ignored
    table("compiled forward of 4 x 512 tokens", {n: forward(c, compiled) for n, c in contexts.items()}, rounds)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--tokens", type=int, default=64)
    main(**vars(arguments.parse_args()))
