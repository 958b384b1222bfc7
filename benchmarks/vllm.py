"""What does steering cost in vLLM? Throughput of one continuous batch, against a stock vLLM in the same run.

    python benchmarks/vllm.py [--starts 4] [--rounds 2] [--requests 64] [--tokens 32]

Four engines with SmolLM2-135M-Instruct (fp32, eager, on the CPU) run as processes side by side and work one at a time,
in an order that turns with every round: a stock vLLM, another one, which shows what two processes of the same differ by,
one with the plugin, and a stock one with a baked checkpoint. Every round has new prompts, the same for all. After some
rounds all four are started anew, in another order: where a process's memory came to lie makes it a few percent faster or
slower for as long as it runs. Ratios are taken round by round, of wall time and of the CPU time that the
engine's process used, which other work on the machine disturbs less. The environment is that of the engine's tests.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]  # this file is no package `vllm`

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip
BLOCKS = (6, 12, 18, 24)
RESULT = "RESULT "


def steerings(variant: str) -> list:
    """What each request of a variant asks for, in turn."""
    if variant == "one vector, 1 block":
        return [{"vector": "block12", "alpha": 1.0}]
    if variant == "32 configurations, 4 blocks":
        return [{"vector": f"block{b}", "alpha": 0.25 * n} for b in BLOCKS for n in (-4, -3, -2, -1, 1, 2, 3, 4)]
    if variant == "32 configurations, all 30 blocks":
        return [{"vector": "all", "alpha": 0.0625 * n} for n in range(1, 33)]
    if variant == "32 ablations, 4 blocks":
        return [
            [{"vector": f"block{b}", "operation": "ablate"}, {"vector": f"block{b}", "alpha": 0.25 * n}]
            for b in BLOCKS
            for n in (-4, -3, -2, -1, 1, 2, 3, 4)
        ]
    return [None]


VARIANTS = {  # the engine, and the target
    "stock": ("stock", None),
    "a second stock": ("second", None),
    "plugin, nothing steered": ("plugin", 0.99),
    "one vector, 1 block": ("plugin", 0.98),
    "32 configurations, 4 blocks": ("plugin", 0.97),
    "32 configurations, all 30 blocks": ("plugin", None),
    "32 ablations, 4 blocks": ("plugin", None),
    "baked": ("baked", 0.99),
}


def work(model: str, requests: int) -> None:
    """In the engine's process: a line of standard input is a round."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    llm = LLM(model, enforce_eager=True, dtype="float32", max_model_len=256, max_num_seqs=requests, block_size=32)
    print(RESULT + "ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=asked["tokens"],
                ignore_eos=True,
                detokenize=False,
                extra_args=None if steer is None else {"steerfn": steer},
            )
            for steer in asked["steer"]
        ]
        wall, cpu = time.perf_counter(), time.process_time()
        made = llm.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], params, use_tqdm=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found = [list(each.outputs[0].token_ids) for each in made]
        print(RESULT + json.dumps({"wall": wall, "cpu": cpu, "tokens": found}), flush=True)
    os._exit(0)


class Engine:
    """A process with an engine."""

    def __init__(self, python: Path, model: Path, requests: int, log: Path, **more: str) -> None:
        whole = {**os.environ, **SETTINGS}
        whole.pop("PYTHONPATH", None)
        command = [str(python), "-P", str(Path(__file__).resolve()), "--work", str(model), "--requests", str(requests)]
        self.log = log
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log.open("w"), env=whole | more, text=True, cwd=log.parent
        )
        self.answer()

    def answer(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(RESULT):
                return line.removeprefix(RESULT)
        raise SystemExit(f"an engine ended: {self.log.read_text()[-3000:]}")

    def round(self, **asked) -> dict:
        """Run one."""
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return json.loads(self.answer())


def prepared(folder: Path) -> None:
    """The model, the vectors, the baked checkpoint."""
    import torch

    import steerfn as sf

    model, tokenizer = sf.demo_model()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    seeded = torch.Generator().manual_seed(0)
    vectors = {f"block{b}": sf.SteeringVector({sf.resid_post[b]: torch.randn(576, generator=seeded)}) for b in BLOCKS}
    vectors["all"] = sf.SteeringVector({sf.resid_post[b]: torch.randn(576, generator=seeded) for b in range(30)})
    (folder / "vectors").mkdir()
    for name, each in vectors.items():
        sf.save(each, folder / "vectors" / f"{name}.safetensors")
    sf.bake(model, tokenizer, sf.add(vectors["block12"], 1.0), folder / "baked")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--starts", type=int, default=4)
    options.add_argument("--rounds", type=int, default=2, help="of each start (default: %(default)s)")
    options.add_argument("--requests", type=int, default=64)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--prompt", type=int, default=16, help="tokens of a prompt (default: %(default)s)")
    options.add_argument("--work", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.work:
        return work(asked.work, asked.requests)
    sys.path.append(str(HERE.parent / "tests" / "engines"))
    from environments import beside, python_of

    with tempfile.TemporaryDirectory() as name:
        folder, python = Path(name), python_of("vllm")
        prepared(folder)
        beside(python, folder / "site")
        plugin = {"PYTHONPATH": str(folder / "site"), "STEERFN_VECTORS": str(folder / "vectors")}
        kinds = {"stock": ("model", {}), "second": ("model", {}), "plugin": ("model", plugin), "baked": ("baked", {})}
        found = {variant: [] for variant in VARIANTS}
        for start in range(asked.starts):
            engines = {
                name: Engine(python, folder / kinds[name][0], asked.requests, folder / f"{name}.log", **kinds[name][1])
                for name in turned(kinds, start)
            }
            measured(engines, asked, start, found)
            for engine in engines.values():
                assert engine.process.stdin is not None
                engine.process.stdin.close()
                engine.process.wait(60)
        show(found, asked)


def turned(names, by: int) -> list:
    """The names from another one on."""
    order = list(names)
    return order[by % len(order) :] + order[: by % len(order)]


def measured(engines: dict[str, Engine], asked: argparse.Namespace, start: int, found: dict[str, list]) -> None:
    """The rounds of one start."""
    drawn = random.Random(start)
    for number in range(asked.rounds + 1):  # the first warms up
        prompts = [[drawn.randrange(20, 49152) for _ in range(asked.prompt)] for _ in range(asked.requests)]
        order = turned(VARIANTS, start * asked.rounds + number)
        made = {}
        for variant in order:
            each = steerings(variant)
            steer = [each[n % len(each)] for n in range(asked.requests)]
            tokens = asked.tokens if number else 4
            made[variant] = engines[VARIANTS[variant][0]].round(prompts=prompts, steer=steer, tokens=tokens)
        if not number:
            continue
        assert (
            made["plugin, nothing steered"]["tokens"]
            == made["stock"]["tokens"]
            != made["one vector, 1 block"]["tokens"]
        )
        for variant in VARIANTS:
            found[variant].append(made[variant])
        shown = {variant: f"{each['wall']:.1f} s, {each['cpu']:.1f} s of CPU time" for variant, each in made.items()}
        print(f"start {start}, round {number} of {asked.rounds}: {shown}", file=sys.stderr, flush=True)


def show(found: dict[str, list], asked: argparse.Namespace) -> None:
    """The table of the ratios."""
    tokens = asked.requests * asked.tokens
    wall = statistics.median(each["wall"] for each in found["stock"])
    cpu = statistics.median(each["cpu"] for each in found["stock"])
    print(
        f"{asked.requests} requests of {asked.prompt} + {asked.tokens} tokens, median of {asked.rounds} rounds in each of "
        f"{asked.starts} starts: stock "
        f"{tokens / wall:.0f} generated tokens/s ({wall:.1f} s, {cpu:.1f} s of CPU time)"
    )
    print(f"  {'throughput over stock':34} {'wall':>6} {'quartiles':>15} {'CPU time':>9} {'quartiles':>15}   target")
    for variant, (_, target) in VARIANTS.items():
        if variant != "stock":
            shown = []
            for clock in ("wall", "cpu"):
                ratios = [a[clock] / b[clock] for a, b in zip(found["stock"], found[variant], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                shown += [f"{middle:.3f}", f"{low:.3f} - {high:.3f}"]
            print(f"  {variant:34} {shown[0]:>6} {shown[1]:>15} {shown[2]:>9} {shown[3]:>15}   {target or ''}")


if __name__ == "__main__":
    main()
