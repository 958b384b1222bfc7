"""Workers: shards that are merged, two real ranks of torchrun, two real actors of Ray."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from differences import Differences, differences
from families import build
from words import words

import steerfn as sf
from steerfn.discover import Workers
from steerfn.discover._engine._contrast import contrast
from steerfn.discover._engine._job import job, states_by_site
from steerfn.discover._engine._ray import RayWorkers
from steerfn.discover._engine._torchrun import TorchRun
from steerfn.discover._engine._workers import run_job
from steerfn.discover._mean_difference import MeanDifference

LETTERS = "abcdefghijklmnopqrstuvwxyz"
POSITIVE = [f"{a} {b} {a} c"[: 3 + i % 5] for i, (a, b) in enumerate(zip(LETTERS, LETTERS[7:], strict=False))]
NEGATIVE = [f"{b} d {a} {b}"[: 3 + i % 4] for i, (a, b) in enumerate(zip(LETTERS, LETTERS[7:], strict=False))]
SITES = [0, sf.attn_out[1], sf.resid_post[2]]
RANKS, FATAL = 2, 3


def close(found, expected):
    """Equal to 1e-6 of the length of each direction."""
    return all((found[s] - expected[s]).norm() <= 1e-6 * expected[s].norm() for s in expected.sites)


def work(model, method):
    texts = contrast(words(), POSITIVE, NEGATIVE, position="last", chat=False, paired=method.paired)
    return job(model, texts, method, SITES, 3)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("method", [MeanDifference(), Differences()], ids=lambda m: m.name)
def test_shards_merge_to_the_whole_in_any_order(tiny, method, shards):
    whole = work(tiny, method)
    expected = states_by_site(whole, whole.run(tiny, progress=False))
    parts = [dataclasses.replace(whole, planned=whole.planned.shard(i, shards)) for i in range(shards)]
    assert sum(part.planned.texts for part in parts) == len(POSITIVE) + len(NEGATIVE)
    runs = [part.run(tiny, progress=False) for part in parts]
    for ordered in (runs, runs[::-1]):
        merged = ordered[0]
        for run in ordered[1:]:
            merged = whole.merge(merged, run)
        assert int(merged.done) == len(whole.planned.rows) and not any(len(h) for held in merged.waiting for h in held)
        for site, state in states_by_site(whole, merged).items():
            there, here = method.finalize(expected[site]), method.finalize(state)
            assert (there - here).norm() <= 1e-6 * there.norm()


def test_more_workers_than_rows_is_no_error(tiny):
    whole = work(tiny, MeanDifference())
    rows = len(whole.planned.rows)
    empty = dataclasses.replace(whole, planned=whole.planned.shard(rows, rows + 1)).run(tiny, progress=False)
    assert int(empty.done) == 0
    run = whole.run(tiny, progress=False)
    for merged in (whole.merge(run, empty), whole.merge(empty, run)):
        assert torch.equal(merged.states[0].difference, run.states[0].difference)


# What each rank does. A rank that fails is caught, so that nothing but the library can tell the other one.
SCRIPT = """
import json, os, sys, time
import torch
torch.set_num_threads(1)
from differences import differences
from families import build
from test_workers import FATAL, NEGATIVE, POSITIVE, SITES
from words import words
import steerfn as sf

folder, rank = sys.argv[1], int(os.environ["RANK"])
model, crew, state = build("llama"), sf.workers.torchrun(), {"seen": 0, "waits": None, "fatal": None}

def before(*_):
    state["seen"] += 1
    if state["seen"] == state["fatal"]:  # not before the other is in its second pass
        wait_for("second.0")
        raise RuntimeError("the disk is on fire.")
    if state["seen"] == state["waits"]:
        open(f"{folder}/second.{rank}", "w").close()
        wait_for("failed.1.json")

def wait_for(name):
    while not os.path.exists(f"{folder}/{name}"):
        time.sleep(0.01)

sf.activations(model, words(), ["a b", "a c"], SITES, progress=False)  # asks what the model can, once
model.model.embed_tokens.register_forward_pre_hook(before)

def call(method, name, negative=NEGATIVE, **options):
    state["seen"], told = 0, {}
    try:
        v = method(model, words(), POSITIVE, negative, SITES, workers=crew, **{"progress": False, **options})
        sf.save(v, f"{folder}/{name}.{rank}.safetensors")
    except sf.SteerError as error:
        told = {"steer": str(error)}
    except RuntimeError as error:
        told = {"error": str(error)}
    told |= {"passes": state["seen"], "files": sorted(os.listdir(folder))}
    with open(f"{folder}/{name}.{rank}.json", "w") as file:
        json.dump(told, file)

call(sf.mean_difference, "mean")
call(differences, "paired", batch_size=2)
call(sf.mean_difference, "texts", negative=NEGATIVE[: len(NEGATIVE) - rank])
state.update(waits=2 if rank == 0 else None, fatal=FATAL if rank == 1 else None)  # until the other is done
call(differences, "failed", batch_size=1, checkpoint=f"{folder}/run")
state.update(waits=None, fatal=None)
call(differences, "resumed", batch_size=1, checkpoint=f"{folder}/run")
call(differences, "anew", batch_size=1)
print("bar", rank, flush=True, file=sys.stderr)
call(sf.mean_difference, "bar", progress=True)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the ranks left in their folder, by call: their words, and the vectors that they saved."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    done = subprocess.run([*launch, script, folder], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name in ("mean", "paired", "texts", "failed", "resumed", "anew", "bar"):
        told = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(RANKS)]
        files = [folder / f"{name}.{rank}.safetensors" for rank in range(RANKS)]
        found[name] = told, [sf.load(file) for file in files if file.exists()]
    return {**found, "stderr": done.stderr}


@pytest.mark.parametrize(
    ("name", "method", "batch_size"), [("mean", sf.mean_difference, "auto"), ("paired", differences, 2)]
)
def test_two_ranks_of_torchrun_give_the_vector_of_one_process(tiny, ranks, name, method, batch_size):
    expected = method(tiny, words(), POSITIVE, NEGATIVE, SITES, batch_size=batch_size, progress=False)
    told, vectors = ranks[name]
    assert not any("error" in each or "steer" in each for each in told)
    first, second = vectors
    assert first.identical(second) and close(first, expected) and first.metadata == expected.metadata
    assert all(each["passes"] > 0 for each in told)


def test_an_error_on_one_rank_reaches_the_other_after_the_batch_that_it_is_in(ranks):
    told, vectors = ranks["failed"]
    assert not vectors and told[1]["error"] == "the disk is on fire." and told[1]["passes"] == FATAL
    assert told[0]["steer"] == (
        "Rank 1 of 2 failed with RuntimeError: the disk is on fire; see its log. This rank stopped with it."
    )
    assert told[0]["passes"] == 2


def test_each_rank_continues_from_its_own_checkpoint(ranks):
    failed, resumed, anew = (ranks[name] for name in ("failed", "resumed", "anew"))
    assert {"run.rank0", "run.rank1"} <= set(failed[0][1]["files"]) | set(failed[0][0]["files"])
    assert resumed[1][0].identical(anew[1][0]) and resumed[1][1].identical(anew[1][0])
    for rank in range(RANKS):
        read = failed[0][rank]["passes"] - (rank == 1)  # the pass that failed is read again
        assert read > 0 and resumed[0][rank]["passes"] == anew[0][rank]["passes"] - read
    assert not any(name.startswith("run") for each in anew[0] for name in each["files"])


def test_ranks_with_other_texts_are_refused_on_all(ranks):
    told, vectors = ranks["texts"]
    assert not vectors
    for each in told:
        assert each["steer"].startswith(
            "Rank 1 and rank 0 were not given the same arguments: texts (19 of 37 positive, "
        )
        assert (
            "give every rank the same texts, options and model ('there' is rank 1, 'here' is rank 0)" in each["steer"]
        )
        assert each["passes"] == 0


def test_only_rank_0_shows_a_bar(ranks):
    before, after = ranks["stderr"].split("bar ")[0], ranks["stderr"]
    assert "Reading activations" not in before and after.count("Reading activations:   0%") == 1


def test_torchrun_needs_torchrun(tiny):
    with pytest.raises(sf.DataError) as caught:
        sf.workers.torchrun()
    assert str(caught.value) == (
        "sf.workers.torchrun() needs processes that torchrun started, and RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT "
        "is not set; start the script with `torchrun --nproc-per-node 2 script.py`, or leave workers out."
    )
    tiny.model.embed_tokens.weight.device_mesh = "two GPUs"  # as a DTensor has
    with pytest.raises(sf.DataError, match="split over the ranks .tensor parallel., so every text needs all of them"):
        sf.mean_difference(tiny, words(), ["a"], ["b"], 1, workers=TorchRun(), progress=False)


def test_workers_are_workers(tiny):
    for wrong in (2, "ray", sf.workers.torchrun):
        with pytest.raises(
            sf.DataError, match=r"workers must be sf.workers.torchrun\(\), sf.workers.ray\(...\) or None, not"
        ):
            sf.mean_difference(tiny, words(), ["a"], ["b"], 1, workers=wrong, progress=False)


class InParts(Workers):
    """Workers of one's own: the protocol is all that they need."""

    def run(self, job, model, *, progress, kept):
        parts = [
            dataclasses.replace(job, planned=job.planned.shard(i, 3)).run(model, progress=progress) for i in range(3)
        ]
        return job.merge(job.merge(parts[0], parts[1]), parts[2])


def test_workers_of_ones_own(tiny):
    one = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, SITES, progress=False)
    assert close(sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, SITES, progress=False, workers=InParts()), one)


def test_what_the_workers_of_ray_refuse(tiny, monkeypatch):
    cases = {
        "`num_workers` must be a positive integer, got 0.": {"num_workers": 0},
        "model_factory must be a function that loads the model, not a str; pass for example lambda": {
            "model_factory": "x"
        },
        "`num_gpus` must be a finite number >= 0, got -1; it is for each worker.": {"num_gpus": -1},
        "`num_cpus` must be a finite number >= 0, got 'all'; it is for each worker.": {"num_cpus": "all"},
    }
    for message, options in cases.items():
        with pytest.raises(sf.DataError) as caught:
            sf.workers.ray(**options)
        assert message in str(caught.value)
    for module in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(sf.SteerError, match=r'needs ray, which cannot be imported .*run: pip install .*"\.\[ray\]"$'):
        sf.workers.ray()
    crew, whole = RayWorkers(2, None, {}), work(tiny, MeanDifference())
    with pytest.raises(sf.DataError) as caught, run_job(whole, tiny, progress=False, checkpoint="run", workers=crew):
        pass
    assert str(caught.value).startswith("Ray workers keep no checkpoint (here 'run'): Ray itself restarts lost workers")
    with pytest.raises(sf.DataError, match="The model is steered here, and Ray workers would read it unsteered"):
        with sf.steer(tiny, sf.SteeringVector({sf.resid_post[0]: torch.ones(32)})):
            sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, workers=crew, progress=False)


@pytest.fixture(scope="module")
def cluster():
    """Two cores of this machine as a Ray cluster whose workers can import the tests."""
    ray = pytest.importorskip("ray")
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()


def broken():
    model = build("llama")

    def fail(*_):
        raise ValueError("the disk is on fire.")

    model.model.embed_tokens.register_forward_pre_hook(fail)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what Ray and pandas say of themselves
@pytest.mark.parametrize("method", [sf.mean_difference, differences], ids=["unpaired", "paired"])
def test_two_workers_of_ray_give_the_vector_of_one_process(tiny, cluster, monkeypatch, method):
    monkeypatch.setattr("steerfn.discover._engine._ray.PIECE", 1000)
    call = functools.partial(method, tiny, words(), POSITIVE, NEGATIVE, SITES, batch_size=3, progress=False)
    expected = call()
    sent = call(workers=sf.workers.ray(2))
    loaded = call(workers=sf.workers.ray(2, model_factory=lambda: build("llama")))
    assert close(sent, expected) and sent.metadata == expected.metadata and loaded.identical(sent)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_of_ray_that_fails(tiny, cluster):
    crew = sf.workers.ray(2, model_factory=broken)
    with pytest.raises(sf.SteerError) as caught:
        sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, SITES, workers=crew, progress=False)
    assert str(caught.value) == "A Ray worker failed with ValueError: the disk is on fire."
    assert "Traceback" in str(caught.value.__cause__)
