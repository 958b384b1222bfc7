"""What a sweep of scores costs: layers x strengths x multiple-choice items, against the loop that every library offers.

    python benchmarks/sweep_scoring.py [--rounds 5] [--items 50] [--scopes after over] [--whole]

SmolLM2-135M-Instruct, A/B questions (`caa/mmlu_ab.json`), 10 layers, 7 strengths. A rival's loop opens its steering for
every configuration and runs all items in padded batches, at the fastest of three batch sizes, reading the logits at
the last token; it takes as long for one configuration as for another, so each round times it on `--configs` of the 70,
drawn anew, and scales (`--whole` runs all 70). Ours runs all 70, in the same process, in turn. All log-probabilities
are compared.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
LAYERS, ALPHAS, BATCHES = tuple(range(10, 20)), (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0), (8, 16, 32)


def questions(count):
    """Prompts that end before the letter."""
    items = json.loads((DATA / "caa" / "mmlu_ab.json").read_text(encoding="utf8"))[:count]
    return [f"{item['prompt']}\n\nAnswer: (" for item in items]


def steering_vectors(model, directions, layer, alpha, start):
    from steering_vectors import SteeringVector

    v = SteeringVector(layer_activations={layer: directions[layer]}, layer_type="decoder_block")
    return v.apply(model, multiplier=alpha, min_token_index=start)


@contextlib.contextmanager
def hook(model, directions, layer, alpha, start):
    """A plain forward hook."""

    def add(module, args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        hidden = hidden.clone()
        hidden[:, start or 0 :] += alpha * directions[layer]
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = model.model.layers[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def repeng(model, directions, layer, alpha, start):
    """Its control of a block adds to every token; it has no scope, so it takes part where everything is steered."""
    import numpy as np

    np.float_ = np.float64  # a name that numpy 2 has dropped
    from repeng import ControlModel, ControlVector

    control = ControlModel(model, [layer])
    control.set_control(ControlVector(model.config.model_type, {layer: directions[layer].numpy()}), alpha)
    try:
        yield
    finally:
        control.reset()
        control.unwrap()


def loop(model, tokenizer, texts, letters, steered, configs, batch):
    """Log-probabilities of the letters after every text under every configuration, `[configs, texts, letters]`."""
    import torch

    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    found = torch.zeros(len(configs), len(texts), len(letters))
    for c, (layer, alpha) in enumerate(configs):
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            inputs = tokenizer([texts[i] for i in some], return_tensors="pt", padding=True, padding_side="left")
            # repeng tells pads by the positions, and takes one row of them for one text
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            with torch.no_grad(), steered(layer, alpha):
                logits = model(**inputs).logits[:, -1]
            found[c, some] = logits.float().log_softmax(-1)[:, letters]
    return found


def compare(title, target, model, tokenizer, prompts, directions, scope, after, rounds, drawn, whole):
    import numpy as np

    import steerfn as sf

    letters = [tokenizer(x, add_special_tokens=False).input_ids[0] for x in "AB"]
    configs = [(layer, alpha) for layer in LAYERS for alpha in ALPHAS]
    v = sf.SteeringVector({sf.resid_post[n]: d for n, d in directions.items()})
    rivals = {"plain hook": hook, "steering-vectors": steering_vectors} | ({} if after else {"repeng": repeng})
    start = -1 if after else None  # left-padded: the last column is the prompt's last token

    def rival(name, some, batch):
        return loop(
            model, tokenizer, prompts, letters, lambda n, a: rivals[name](model, directions, n, a, start), some, batch
        )

    def ours():
        return sf.sweep(
            model, tokenizer, prompts, v, ALPHAS, sites=list(LAYERS), scope=scope, continuations=["A", "B"], chat=False,
            progress=False,
        )  # fmt: skip

    table = ours()
    mine = np.stack(table.log_probs, axis=1)
    rng = random.Random(0)
    best, seconds, ratios = {}, [], {name: [] for name in rivals}
    for name in rivals:
        took = {}
        for batch in BATCHES:
            begin = time.perf_counter()
            rival(name, configs[3:5], batch)
            took[batch] = time.perf_counter() - begin
        best[name] = min(took, key=took.__getitem__)
    worst = 0.0
    for turn in range(rounds):
        begin = time.perf_counter()
        ours()
        seconds.append(time.perf_counter() - begin)
        names = list(rivals)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            some = configs if whole else rng.sample(configs, drawn)
            begin = time.perf_counter()
            found = rival(name, some, best[name])
            each = (time.perf_counter() - begin) / len(some)
            ratios[name].append(each * len(configs) / seconds[-1])
            theirs = found.numpy()
            worst = max(worst, float(np.abs(theirs - mine[[configs.index(c) for c in some]]).max()))
    print(
        f"\n{title}: steerfn {statistics.median(seconds):.2f} s for {len(configs)} x {len(prompts)} (median of {rounds})"
    )
    for name, each in ratios.items():
        print(
            f"  {name:<18} batch {best[name]:>2}  {statistics.median(each):6.2f} x ({min(each):.2f} - {max(each):.2f})"
        )
    lowest = min(statistics.median(each) for each in ratios.values())
    print(
        f"  against the best rival: {lowest:.2f} x (target {target} x); log-probabilities differ by {worst:.1e} at most"
    )
    assert worst < 1e-2, "not the same work"


def main(rounds, items, configs, whole, scopes):
    import torch
    import transformers

    import steerfn as sf

    transformers.logging.set_verbosity_error()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads",
        flush=True,
    )
    model, tokenizer = sf.demo_model(progress=False)
    generator = torch.Generator().manual_seed(0)
    directions = {n: torch.randn(model.config.hidden_size, generator=generator) for n in LAYERS}
    common = (model, tokenizer, questions(items), directions)
    if "after" in scopes:
        compare("from the last prompt token on", 20, *common, sf.generated, True, rounds, configs, whole)
    if "over" in scopes:
        compare("over the whole prompt", 4, *common, None, False, rounds, configs, whole)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--items", type=int, default=50)
    arguments.add_argument("--configs", type=int, default=3, help="configurations of a rival's loop timed in a round")
    arguments.add_argument("--scopes", nargs="+", choices=["after", "over"], default=["after", "over"])
    arguments.add_argument("--whole", action="store_true", help="time a rival's loop over all 70")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.inside:
        main(chosen.rounds, chosen.items, chosen.configs, chosen.whole, chosen.scopes)
    else:
        from discovery import rivals

        sys.exit(
            subprocess.run(
                [str(rivals()), __file__, "--inside", *sys.argv[1:]],
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
            ).returncode
        )
