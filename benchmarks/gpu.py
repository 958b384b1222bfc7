"""What steering costs on a GPU, in one command and one table: bf16, random weights, eager and with CUDA graphs.

    python benchmarks/gpu.py [--size 1b|8b] [--rounds 9] [--tokens 64] [--no-compile]

`8b` is the shape of Llama 3 8B, `1b` that of Llama 3.2 1B. Times are synchronised and taken in rounds, every variant once in
a round, in an order that turns; figures are medians of differences and ratios within a round. `--device cpu --size tiny`
runs the same on a CPU, to try the script.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from decode import decode, different
from overhead import BLOCK, hook, vector
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import steerfn as sf

SHAPES = {
    "8b": (4096, 14336, 32, 32, 8),
    "1b": (2048, 8192, 16, 32, 8),
    "tiny": (64, 128, 16, 4, 2),
}
VOCABULARY = 32000


def model_of(size: str, device: str):
    d, ff, layers, heads, kv = SHAPES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=d, intermediate_size=ff, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=max(64, d // heads) if size != "tiny" else 16, bos_token_id=1, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def tokenizer_of():
    """Words "w3", "w4", ... are tokens: nothing is downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1")


def sentence(seed: int, count: int) -> str:
    ids = torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in ids.tolist())


def seconds(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rounds_of(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    names = list(calls)
    for name in names:
        calls[name]()  # warm up, and compile
        calls[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(seconds(calls[name]))
    return found


def overheads(title: str, calls: dict[str, Callable[[], object]], rounds: int, steps: int, unit: str) -> None:
    """Rows of the table: each variant against the first."""
    found = rounds_of(calls, rounds)
    base = found[next(iter(calls))]
    print(f"{title:<42}{'unsteered':<16}{statistics.median(base) / steps * 1e6:>12.1f} us/{unit}", flush=True)
    for name, each in list(found.items())[1:]:
        ratios = [a / b for a, b in zip(each, base, strict=True)]
        extra = [(a - b) / steps * 1e6 for a, b in zip(each, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{'':<42}{name:<16}{statistics.median(extra):>+12.1f} us/{unit}{100 * (middle - 1):>+9.2f} %"
            f"   ({100 * (low - 1):+.2f} to {100 * (high - 1):+.2f})",
            flush=True,
        )


def gain(title: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
    """A row of the table: how many times faster than the plain way."""
    found = rounds_of({"ours": ours, "theirs": theirs}, rounds)
    ratios = [b / a for a, b in zip(found["ours"], found["theirs"], strict=True)]
    print(
        f"{title:<50}{statistics.median(found['ours']):>10.3f} s{statistics.median(ratios):>10.2f} x"
        f"   ({min(ratios):.2f} - {max(ratios):.2f})",
        flush=True,
    )


def decoding(model, tokens: int, rounds: int, compiled: bool) -> None:
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    one, every = vector([sf.resid_post[BLOCK]], width), vector([sf.resid_post[i] for i in range(layers)], width)
    beside = one.to(model.device).to(model.dtype)
    for batch in (1, 8, 32):
        ids = torch.randint(3, VOCABULARY, (batch, 16), device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        own = different(model, batch)
        contexts = {
            "unsteered": contextlib.nullcontext,
            "1 block": lambda: sf.steer(model, one),
            "all blocks": lambda: sf.steer(model, every),
            "rows": lambda own=own: sf.steer(model, own),
        }
        if not compiled:  # a hook added after torch.compile is ignored
            contexts["plain hook"] = lambda: hook(model, beside)
        options = {"cache_implementation": "static"} if compiled else {}
        calls = {name: decode(model, inputs, context, tokens, **options) for name, context in contexts.items()}
        how = "compiled, static cache" if compiled else "eager"
        overheads(f"decode, {how}, batch {batch}", calls, rounds, tokens, "token")


def entering(model) -> None:
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    for name, sites in (("1 block", [BLOCK]), ("all blocks", range(layers))):
        v = vector([sf.resid_post[i] for i in sites], width)

        def enter(v=v):
            with sf.steer(model, v):
                pass

        enter()
        took = [seconds(enter) for _ in range(100)]
        print(f"{'entering and leaving a context':<42}{name:<16}{statistics.median(took) * 1e6:>12.1f} us", flush=True)


def discovery(model, tokenizer, rounds: int) -> None:
    pairs = [(sentence(i, 150) + " w3", sentence(i, 150) + " w4") for i in range(64)]
    positive, negative = zip(*pairs, strict=True)

    def plain():
        """The usual loop: padded batches, every hidden state, the last token of each."""
        states = []
        for start in range(0, 64, 16):
            for texts in (positive[start : start + 16], negative[start : start + 16]):
                inputs = tokenizer(list(texts), return_tensors="pt", padding=True).to(model.device)
                with torch.no_grad():
                    out = model(**inputs, output_hidden_states=True)
                states.append(out.hidden_states[BLOCK + 1][:, -1].float().cpu())
        return states

    gain(
        "discovery, 64 pairs of 151 tokens, one layer",
        lambda: sf.mean_difference(model, tokenizer, positive, negative, BLOCK, progress=False),
        plain,
        rounds,
    )


def sweeps(model, tokenizer, rounds: int) -> None:
    v = vector([sf.resid_post[i] for i in range(model.config.num_hidden_layers)], model.config.hidden_size)
    prompt, sites, alphas = sentence(1, 30), [4, 6, 8, 10], [i / 4 for i in range(1, 17)]
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}

    def one_by_one():
        for site in sites:
            for alpha in alphas:
                sf.generate(model, tokenizer, prompt, sf.add(v.select(site), alpha), **options)

    gain(
        "sweep of generations, 64 configurations",
        lambda: sf.sweep(model, tokenizer, prompt, v, alphas, sites=sites, progress=False, **options),
        one_by_one,
        max(1, rounds // 3),
    )
    prompts = [sentence(i, 100) for i in range(50)]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)

    def loop():
        for site in sites:
            for alpha in alphas[:7]:
                with torch.no_grad(), sf.steer(model, v.select(site), alpha):
                    for start in range(0, 50, 25):
                        model(**{name: each[start : start + 25] for name, each in inputs.items()})

    for name, scope in (("after the prompt", sf.generated), ("over the prompt", None)):
        gain(
            f"sweep of scores, 28 x 50, {name}",
            lambda scope=scope: sf.sweep(
                model,
                tokenizer,
                prompts,
                v,
                alphas[:7],
                sites=sites,
                scope=scope,
                continuations=[" w5", " w6"],
                progress=False,
            ),  # fmt: skip
            loop,
            max(1, rounds // 3),
        )


def main(size: str, device: str, rounds: int, tokens: int, no_compile: bool) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; benchmarks/decode.py measures on a CPU.")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    model, tokenizer = model_of(size, device), tokenizer_of()
    count = sum(p.numel() for p in model.parameters())
    print(f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {count / 1e9:.2f} B parameters, bf16\n")
    entering(model)
    decoding(model, tokens, rounds, compiled=False)
    if not no_compile:
        decoding(model, tokens, rounds, compiled=True)
    discovery(model, tokenizer, rounds)
    sweeps(model, tokenizer, rounds)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--size", choices=SHAPES, default="1b")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--no-compile", action="store_true")
    chosen = arguments.parse_args()
    if chosen.rounds < 2:
        arguments.error("--rounds is 2 or more: of one round there are no quartiles")
    main(**vars(chosen))
