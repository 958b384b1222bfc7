"""What discovery costs against the libraries that people use for it, in one run, on the same model and texts.

    python benchmarks/discovery.py [--rounds 5] [--cases 1 2 3 4] [--rivals repeng] [--profile]

Sets up a virtual environment of its own with the rivals (steering-vectors 0.12.2, repeng 0.4.0, transformers 4.57, which
they need) and this checkout, and runs everything there. Each round runs every library once, in an order that turns;
ratios are taken within a round; the median counts. Rivals run at the batch size that was best for them on a first
trial. Every library's mean difference is compared with ours, so all do the same work. The share of the machine's rate and
the memory are printed where no cases are chosen.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
HOME = Path(os.environ.get("STEERFN_RIVALS") or Path.home() / ".cache" / "steerfn" / "rivals")
PINS = ["torch==2.13.0", "transformers==4.57.6", "steering-vectors==0.12.2", "accelerate", "gguf>=0.19", "scikit-learn"]
OURS = ["safetensors", "einops", "jaxtyping", "beartype", "numpy"]
LAYER, BATCHES = 12, (4, 16, 32)


def rivals() -> Path:
    """The interpreter of the rivals' environment, made at the first run."""
    python = HOME / "bin" / "python"
    if not (HOME / "ready").exists():
        print(f"setting up the rivals in {HOME} (once)", flush=True)
        venv.create(HOME, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *PINS, *OURS], check=True)
        # repeng's own pins do not fit the others'; what is used of it runs on theirs
        subprocess.run([*pip, "--no-deps", "repeng==0.4.0"], check=True)
        (HOME / "ready").touch()
    return python


def caa(name: str, count: int) -> list[tuple[str, str]]:
    items = json.loads((DATA / "caa" / "generate" / f"{name}.json").read_text(encoding="utf8"))[:count]
    return [
        (f"{i['question']} {i['answer_matching_behavior']}", f"{i['question']} {i['answer_not_matching_behavior']}")
        for i in items
    ]


def sentences(count: int) -> list[tuple[str, str]]:
    """Unpaired short sentences: happy and sad scenes."""
    happy, sad = (
        json.loads((DATA / "repe" / "emotions" / f"{name}.json").read_text(encoding="utf8"))[:count]
        for name in ("happiness", "sadness")
    )
    return list(zip(happy, sad, strict=True))


def ours(model, tokenizer, pairs, layers, batch):
    """This library, at its defaults."""
    import steerfn as sf

    del batch
    positive, negative = zip(*pairs, strict=True)
    v = sf.mean_difference(model, tokenizer, positive, negative, layers, progress=False)
    return {layer: v[layer] for layer in layers}


def steering_vectors(model, tokenizer, pairs, layers, batch):
    from steering_vectors import train_steering_vector

    return train_steering_vector(model, tokenizer, pairs, layers=layers, batch_size=batch).layer_activations


def repeng(model, tokenizer, pairs, layers, batch):
    """Only its reading of hidden states, not the PCA that follows."""
    import numpy as np
    import torch

    np.float_ = np.float64  # repeng 0.4.0 names a type that numpy 2 has dropped
    from repeng.extract import batched_get_hiddens

    read = batched_get_hiddens(model, tokenizer, [text for pair in pairs for text in pair], layers, batch)
    return {n: torch.from_numpy(np.mean(h[::2] - h[1::2], axis=0, dtype=np.float64)) for n, h in read.items()}


LIBRARIES = {"steerfn": ours, "steering-vectors": steering_vectors, "repeng": repeng}


def best_batch(name, model, tokenizer, pairs) -> int:
    """The rival's fastest batch size on a few of the pairs."""
    took = {}
    for batch in BATCHES:
        start = time.perf_counter()
        LIBRARIES[name](model, tokenizer, pairs, [LAYER], batch)
        took[batch] = time.perf_counter() - start
    return min(took, key=took.__getitem__)


_best: dict[tuple[str, str], int] = {}


def compare(title, target, model, tokenizer, pairs, layers, rounds, against) -> None:
    import torch

    names = ["steerfn", *against]
    sample = random.Random(0).sample(pairs, 32)
    for name in names[1:]:  # tried once for each set of texts
        if (name, pairs[0][0]) not in _best:
            _best[name, pairs[0][0]] = best_batch(name, model, tokenizer, sample)
    batch = {name: _best[name, pairs[0][0]] for name in names[1:]}
    seconds, vectors = {name: [] for name in names}, {}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            vectors[name] = LIBRARIES[name](model, tokenizer, pairs, layers, batch.get(name))
            seconds[name].append(time.perf_counter() - start)
    mine = seconds["steerfn"]
    print(f"\n{title}: steerfn {statistics.median(mine):.2f} s (median of {rounds})")
    best = float("inf")
    for name in names[1:]:
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], mine, strict=True)]
        # repeng reads the last block after the model's final norm, which is another state.
        same = [n for n in layers if name != "repeng" or n != model.config.num_hidden_layers - 1]
        agree = min(
            float(torch.cosine_similarity(vectors[name][n].double(), vectors["steerfn"][n].double(), dim=0))
            for n in same
        )
        best = min(best, statistics.median(ratios))
        print(
            f"  {name:<18} batch {batch[name]:>2}  {statistics.median(seconds[name]):7.2f} s   "
            f"{statistics.median(ratios):5.2f} x ({min(ratios):.2f} - {max(ratios):.2f})   cosine {agree:.6f}"
        )
        assert agree > 0.99999, f"{name} computed something else"
    print(f"  against the best rival: {best:.2f} x (target {target} x)", flush=True)


def share_of_peak(model, tokenizer, pairs, rounds) -> None:
    """The matrix-product rate on the work that cannot be avoided, over what the machine reaches on such products."""
    import torch

    import steerfn as sf

    config, at = model.config, sf.layout(model)
    d, ff, kv = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    rows = torch.randn(1024, d)
    weight = torch.randn(ff, d)
    positive, negative = zip(*pairs, strict=True)
    texts = [tokenizer(text).input_ids for pair in pairs for text in pair]
    distinct = len({tuple(ids[: i + 1]) for ids in texts for i in range(len(ids))})
    per_token = 2 * (2 * d * d + 2 * d * kv + 3 * d * ff)
    shares = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(50):
            torch.nn.functional.linear(rows, weight)
        peak = 50 * 2 * 1024 * d * ff / (time.perf_counter() - start)
        start = time.perf_counter()
        sf.mean_difference(model, tokenizer, positive, negative, LAYER, progress=False)
        reached = distinct * per_token * (LAYER + 1) / (time.perf_counter() - start)
        shares.append(reached / peak)
    print(
        f"\n{distinct} distinct tokens x {LAYER + 1} of {at.n_layers} blocks: {statistics.median(shares):.0%} of the machine's "
        f"matrix-product rate ({peak / 1e9:.0f} GFLOP/s), all of discovery included (median of {rounds}; target 60 %)",
        flush=True,
    )


def profile(model, tokenizer, pairs) -> None:
    """Where the time of discovery goes, and how much arithmetic it is against running both texts of each pair whole."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    import steerfn as sf

    positive, negative = zip(*pairs, strict=True)
    sf.mean_difference(model, tokenizer, positive[:8], negative[:8], LAYER, progress=False)
    with profiled(activities=[ProfilerActivity.CPU]) as found:
        sf.mean_difference(model, tokenizer, positive, negative, LAYER, progress=False)
    total = sum(each.self_cpu_time_total for each in found.key_averages())
    print(f"\nwhere the time goes, {len(pairs)} pairs, one layer ({total / 1e6:.2f} s):")
    for each in sorted(found.key_averages(), key=lambda each: -each.self_cpu_time_total)[:5]:
        print(f"  {each.key:<48} {each.self_cpu_time_total / total:5.1%}")
    config = model.config
    d, ff, kv = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    texts = [tokenizer(text).input_ids for pair in pairs for text in pair]
    distinct = len({tuple(ids[: i + 1]) for ids in texts for i in range(len(ids))})
    block, mlp, head = 2 * (2 * d * d + 2 * d * kv + 3 * d * ff), 2 * 3 * d * ff, 2 * d * config.vocab_size
    ours = distinct * (block * (LAYER + 1) - mlp)  # the MLP of the last block runs on the tokens that are read
    whole = sum(map(len, texts)) * (block * config.num_hidden_layers + head)
    print(f"  arithmetic: {ours / 1e12:.2f} TFLOP; {whole / 1e12:.2f} where all texts run whole, {whole / ours:.1f} x")


MEMORY = """
import pathlib, sys
import steerfn as sf
sys.path.insert(0, {here!r})
from discovery import caa

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

model, tokenizer = sf.demo_model(progress=False)
positive, negative = zip(*caa("sycophancy", {count}))
sum(float(p.sum()) for p in model.parameters())  # weights lie in the file until they are touched
sf.mean_difference(model, tokenizer, positive[:8], negative[:8], 12, progress=False)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
before = status("VmRSS")
sf.mean_difference(model, tokenizer, positive, negative, 12, progress=False)
print(before, status("VmHWM") - before)
"""


def memory(counts=(64, 256, 1000)) -> None:
    """Peak resident memory of discovery over that of the loaded model (on Linux, which tells)."""
    print("\npeak memory over the loaded model:")
    for count in counts:
        code = MEMORY.format(here=str(Path(__file__).parent), count=count)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        before, more = map(float, out.split())
        print(f"  {count:>5} pairs: {more:+.0f} MiB (the process with the model: {before:.0f} MiB)", flush=True)


def main(chosen: argparse.Namespace) -> None:
    import torch
    import transformers

    import steerfn as sf

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    model, tokenizer = sf.demo_model(progress=False)
    every = list(range(model.config.num_hidden_layers))
    cases = [
        ("64 CAA pairs (corrigible), one layer", 8, caa("corrigible-neutral-HHH", 64), [LAYER]),
        ("203 + 203 short sentences, one layer", 2.5, sentences(203), [LAYER]),
        ("64 CAA pairs (corrigible), all layers", 3, caa("corrigible-neutral-HHH", 64), every),
        ("64 CAA pairs (sycophancy), one layer", 8, caa("sycophancy", 64), [LAYER]),
        ("256 CAA pairs (corrigible), one layer", 8, caa("corrigible-neutral-HHH", 256), [LAYER]),
        ("256 CAA pairs (corrigible), all layers", 3, caa("corrigible-neutral-HHH", 256), every),
        ("256 CAA pairs (sycophancy), one layer", 8, caa("sycophancy", 256), [LAYER]),
        ("256 CAA pairs (sycophancy), all layers", 3, caa("sycophancy", 256), every),
    ]
    if chosen.profile:
        return profile(model, tokenizer, caa("sycophancy", 64))
    if not chosen.cases:
        share_of_peak(model, tokenizer, caa("sycophancy", 64), chosen.rounds)
        memory()
    for title, target, pairs, layers in [cases[i - 1] for i in chosen.cases or range(1, len(cases) + 1)]:
        compare(title, target, model, tokenizer, pairs, layers, chosen.rounds, chosen.rivals)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument(
        "--cases", type=int, nargs="*", default=[], help="of the eight comparisons, 1 to 8; else all"
    )
    arguments.add_argument("--rivals", nargs="+", choices=list(LIBRARIES)[1:], default=list(LIBRARIES)[1:])
    arguments.add_argument("--profile", action="store_true", help="show where the time goes, and compare nothing")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if not DATA.exists():
        sys.exit(f"The texts are read from {DATA}, which is not there.")
    if chosen.inside:
        os.environ["TQDM_DISABLE"] = "1"
        main(chosen)
    else:
        command = [str(rivals()), __file__, "--inside", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode)
