"""Many users, one model, for minutes: does any caller ever get another's steering, and does memory stay flat?

    python benchmarks/load.py [--minutes 10] [--tiny] [--callers 64]

64 threads share SmolLM2-135M (`--tiny`: a small random Llama) and take jobs in a seeded order: `sf.generate`, `with
sf.steer(...): model.generate`, `sf.functional`, `sf.stream` (some closed after the first piece), rows, captures, nested
contexts closed in either order, unsteered callers, operators that raise, blocks that raise, interruptions in the middle
of a generation. Every outcome, the planned errors too, is compared with that of the same job alone: tokens and texts
equal, logits bit for bit. Between waves, when nothing runs, memory is read. At the end the model is compared with a
snapshot from before. Exit code 1 on any difference or on a leak: the rule is in `tests/flatness.py`.

So that a leak shows, MKL's buffers are switched off (it keeps some for every thread, and with 64 they grow for thousands
of calls, of the unsteered model too), and malloc has one arena and keeps no freed tensor.
"""

import argparse
import collections
import os
import sys
import threading
import time
from pathlib import Path

os.environ["MKL_DISABLE_FAST_MM"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # the jobs are those of tests/test_load.py

import torch  # noqa: E402 - MKL reads its environment when torch is imported
from crowd import PROMPTS, Crowd, jobs, small  # noqa: E402 - lies in tests/, as the next three do
from flatness import ERRORS, FEWEST, MIB, SHARE, Sample, Trend, resident, settle, steady, trend  # noqa: E402 - as above
from snapshot import Snapshot, same_bits  # noqa: E402 - as above
from words import words  # noqa: E402 - as above

import steerfn as sf  # noqa: E402 - imports torch

TEXTS = ["The weather in the mountains", "My best friend told me that", "Once upon a time", "The recipe needs two"]


def parts(tiny: bool) -> tuple:
    """Model, tokenizer and prompts."""
    if tiny:
        return small(512, 4), words(), PROMPTS
    return *sf.demo_model(), TEXTS


def logits(model) -> torch.Tensor:
    ids = torch.randint(3, 20, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).logits


def run(crowd: Crowd, minutes: float) -> tuple[list[Sample], float]:
    """Waves of jobs until the time is over: memory after each, and the seconds they took in all."""
    samples, started, busy = [], time.monotonic(), 0.0
    while time.monotonic() - started < 60 * minutes or len(samples) < FEWEST:
        before = time.monotonic()
        crowd.work(crowd.callers)
        busy += time.monotonic() - before
        settle()
        now = (time.monotonic() - started) / 60
        samples.append(Sample(now, sum(crowd.calls.values()), resident()))
        print(
            f"\r{now:5.1f} of {minutes:g} min, {samples[-1].calls} calls, {len(crowd.wrong)} wrong", end="", flush=True
        )
    print()
    return samples, busy


def table(crowd: Crowd, busy: float) -> None:
    wrong = collections.Counter(line.split("(")[1].split(")")[0] for line in crowd.wrong)
    print(f"\n  {'kind':<24}{'calls':>8}{'per second':>12}{'wrong':>8}{'errors as planned':>20}")
    for kind, calls in sorted(crowd.calls.items(), key=lambda item: -item[1]):
        print(f"  {kind:<24}{calls:>8}{calls / busy:>12.2f}{wrong[kind]:>8}{crowd.raised[kind]:>20}")
    total = sum(crowd.calls.values())
    print(f"  {'all':<24}{total:>8}{total / busy:>12.2f}{len(crowd.wrong):>8}{sum(crowd.raised.values()):>20}")


def told(found: Trend, block: float, samples: list[Sample]) -> None:
    print(
        f"\nmemory between waves ({len(samples)} samples): first third {found.first:.1f} MiB, last {found.last:.1f} MiB"
    )
    print(
        f"  slope over the last half: {found.per_minute:+.2f} MiB a minute, {found.per_thousand:+.2f} MiB "
        f"(+- {found.error:.2f}) a thousand calls; a leak is more than {SHARE * block:.2f} ({SHARE:g} of a block) and {ERRORS:g} errors"
    )


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--tiny", action="store_true", help="a small random Llama in place of SmolLM2")
    arguments.add_argument("--callers", type=int, default=64)
    chosen = arguments.parse_args()
    steady()
    torch.set_num_threads(1)  # callers are the parallelism
    # Who streams unsteered while another thread has a context open is warned as if it had forgotten to steer.
    model, tokenizer, prompts = parts(chosen.tiny)
    plain, before, threads = logits(model), Snapshot.of(model), set(threading.enumerate())

    found = jobs(model, tokenizer, prompts, 4)
    print(f"torch {torch.__version__}, {chosen.callers} callers, {len(found)} jobs, first each alone", flush=True)
    crowd = Crowd(found, chosen.callers)
    crowd.work(2 * chosen.callers)  # the first waves start the threads and fill caches
    samples, busy = run(crowd, chosen.minutes)
    crowd.close()
    table(crowd, busy)

    failures = list(crowd.wrong[:10])
    failures += [f"the model changed: {line}" for line in before.differences(Snapshot.of(model))[:10]]
    if not same_bits(logits(model), plain):
        failures.append("the logits are not bitwise those from before")
    left = set(threading.enumerate()) - threads
    if left:
        failures.append(f"threads are left over: {sorted(thread.name for thread in left)}")
    weights = model.get_submodule(sf.layout(model).blocks[0].path).parameters()
    block = sum(p.numel() * p.element_size() for p in weights) / MIB
    memory = trend(samples)
    told(memory, block, samples)
    if memory.leaks(block):
        failures.append(f"memory grows by {memory.per_thousand:.2f} MiB in a thousand calls")
    print(f"\nmodel, logits and threads ({len(threads)}) as before: {'no' if failures else 'yes'}")
    for line in failures:
        print(f"FAILED: {line}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
