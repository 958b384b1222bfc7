"""How far a reader walks: files entered, and calls from one file into another, on five journeys through the package.

    python benchmarks/journeys.py

Each journey runs once unmeasured, so that imports and what is remembered with a model are over, then once with every
call counted: in this thread and in those that the library starts. No time is taken; the counts are the same on every
machine, and fall where one thing is done once.
"""

import collections
import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from fastapi.testclient import TestClient

import steerfn as sf
from steerfn.serving import app

PACKAGE = str(Path(sf.__file__).parent)
BLOCK = 14
LAUNCHERS = ("_lazy.py", "_struct.py")  # how names load and values are made: everyone passes through, no one reads


class Walk:
    """What was entered between `begin` and `end`."""

    def __init__(self) -> None:
        self.counting = False
        self.files: set[str] = set()
        self.crossings = 0
        self.functions: collections.Counter[str] = collections.Counter()

    def begin(self) -> None:
        """Count from here."""
        self.counting = True

    def end(self) -> None:
        """Count no more."""
        self.counting = False

    def __call__(self, frame, event, argument) -> None:
        """What `sys.setprofile` calls."""
        if event != "call" or not self.counting:
            return
        here, caller = frame.f_code.co_filename, frame.f_back and frame.f_back.f_code.co_filename
        if not here.startswith(PACKAGE) or here.endswith(LAUNCHERS):
            return
        self.files.add(here)
        if here != caller and caller is not None and caller.startswith(PACKAGE):
            self.crossings += 1
            self.functions[f"{Path(here).relative_to(PACKAGE)}:{frame.f_code.co_name}"] += 1


@contextlib.contextmanager
def walking() -> Iterator[Walk]:
    """Watch this thread, and every thread that begins meanwhile."""
    walk = Walk()
    threading.setprofile(walk)
    sys.setprofile(walk)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def journeys(model, tokenizer) -> dict[str, Callable[[Walk], None]]:
    """The five, each with the `Walk` to begin and end."""
    happy = ["What a wonderful day!", "I love this so much.", "Great news for us all!", "How lovely to see you."]
    sad = ["What a terrible day.", "I hate this so much.", "Awful news for us all.", "How sad to leave you."]
    prompts = ["The weather today is", "My day was"]
    vector = sf.mean_difference(model, tokenizer, happy, sad, BLOCK, progress=False)
    other = sf.random_vector(like=vector, seed=0)
    inputs = tokenizer("The weather today is", return_tensors="pt")

    def steered_forward(walk: Walk) -> None:
        with sf.steer(model, vector, alpha=2.0), torch.no_grad():
            walk.begin()
            model(**inputs)
            walk.end()

    def served(walk: Walk) -> None:
        body = {"prompt": "The weather today is", "max_tokens": 4, "steering": {"vector": "happy", "alpha": 2.0}}
        with tempfile.TemporaryDirectory() as folder:
            sf.save(vector, Path(folder, "happy.safetensors"))
            with TestClient(app(model, tokenizer, folder)) as client:
                walk.begin()
                answer = client.post("/v1/completions", json=body)
                walk.end()
        assert answer.status_code == 200, answer.text

    def whole(call: Callable[[], object]) -> Callable[[Walk], None]:
        def journey(walk: Walk) -> None:
            walk.begin()
            call()
            walk.end()

        return journey

    return {
        "steered forward": steered_forward,
        "mean_difference": whole(lambda: sf.mean_difference(model, tokenizer, happy, sad, BLOCK)),
        "compare_vectors": whole(
            lambda: sf.compare_vectors(
                model, tokenizer, {"happy": vector, "random": other}, prompts, metrics=["length"], max_new_tokens=4
            )
        ),
        "one served request": served,
        "report": whole(
            lambda: sf.report(
                model, tokenizer, vector, {"positive": happy, "negative": sad}, metrics=["length"], max_new_tokens=4
            )
        ),
    }


def main() -> None:
    sf.set_progress(False)
    model, tokenizer = sf.demo_model()
    print(f"{'journey':20} {'files':>6} {'calls':>7}   most called from other files")
    for name, journey in journeys(model, tokenizer).items():
        journey(Walk())
        with walking() as walk:
            journey(walk)
        most = ", ".join(f"{function} {count}" for function, count in walk.functions.most_common(3))
        print(f"{name:20} {len(walk.files):6} {walk.crossings:7}   {most}")


if __name__ == "__main__":
    main()
