"""Many users, one model: 64 callers at once, each of whom gets what it gets alone.

`benchmarks/load.py` does the same for minutes.
"""

import random
import sys
import threading

import pytest
import torch
from crowd import PROMPTS, Crowd, Job, jobs, same, small
from flatness import Sample, trend
from snapshot import Snapshot, assert_same_bits, same_bits
from steering import token_ids
from words import words

import steerfn as sf
from steerfn.model import _entry

CALLERS = 64
# Who streams unsteered while another thread has a context open is warned as if it had forgotten to steer.


@pytest.fixture
def tiny():
    return small()


def logits(model):
    with torch.no_grad():
        return model(token_ids() % 20 + 3).logits


def test_64_callers_get_what_they_get_alone(tiny):
    plain, before, threads = logits(tiny), Snapshot.of(tiny), set(threading.enumerate())
    crowd = Crowd(jobs(tiny, words(), PROMPTS, 4), CALLERS)
    assert not before.differences(Snapshot.of(tiny))
    count = 2 * len(crowd.jobs)
    crowd.work(count)
    crowd.close()
    assert not crowd.wrong, "\n".join(crowd.wrong[:5])
    assert sum(crowd.calls.values()) == count and set(crowd.calls) == {job.kind for job in crowd.jobs}
    assert {kind: 2 * 2 for kind in ("operator raises", "block raises", "interrupted")} == +crowd.raised
    assert_same_bits(logits(tiny), plain)
    assert not before.differences(Snapshot.of(tiny))
    assert set(threading.enumerate()) == threads


def test_the_jobs_are_told_apart(tiny):
    """Cross-talk would be seen: outcomes differ from job to job, errors are the planned ones, and steering steers."""
    found = jobs(tiny, words(), PROMPTS, 4)
    outcomes = [job.outcome() for job in found]
    distinct = [i for i in range(len(found)) if not any(same(outcomes[i], outcomes[j]) for j in range(i))]
    assert len(distinct) > 0.8 * len(found)  # some repeat an operator and a prompt on purpose
    for job, (notes, error) in zip(found, outcomes, strict=True):
        assert notes and (error.split(": ")[0] in ("Planned", "Interrupted") if job.raises else not error), error
    given = [words()(prompt, return_tensors="pt")["input_ids"] for prompt in PROMPTS]
    with torch.no_grad():
        plain = [tiny(ids).logits[0, -1] for ids in given]
    moved = []
    for job, (notes, _) in zip(found, outcomes, strict=True):
        if job.kind.startswith("stream"):
            assert notes[0] and all(notes[0]), job
            assert len(notes[0]) == 1 or job.kind == "stream"
        if job.kind in ("functional", "with steer: generate"):
            moved.append(not any(same_bits(notes[0], unsteered) for unsteered in plain))
    assert sum(moved) > 0.8 * len(moved)  # a condition may not hold


class Shared:
    """What a library without isolation would keep its steerings in: one place for all threads."""

    def __init__(self):
        self.value = ()

    def get(self):
        return self.value

    def set(self, value):
        before, self.value = self.value, value
        return before

    def reset(self, before):
        self.value = before


def test_cross_talk_is_found(tiny, monkeypatch):
    crowd = Crowd(jobs(tiny, words(), PROMPTS, 4), CALLERS)
    shared, ours = Shared(), _entry.active
    for name, module in list(sys.modules.items()):
        if name.startswith("steerfn.") and getattr(module, "active", None) is ours:
            monkeypatch.setattr(module, "active", shared)
    crowd.work(len(crowd.jobs))
    crowd.close()
    assert crowd.wrong


def test_a_wrong_bit_or_another_error_is_found():
    outcome = [0.0, ""]
    crowd = Crowd(
        [Job("zero", lambda note: note(torch.tensor(outcome[0]))), Job("error", lambda note: error(outcome))], 4
    )
    outcome[0] = -0.0
    crowd.work(2)
    assert len(crowd.wrong) == 1 and "(zero)" in crowd.wrong[0]
    outcome[1] = "another"
    crowd.work(2)
    assert len(crowd.wrong) == 3 and "(error)" in "".join(crowd.wrong[1:])
    crowd.close()


def error(outcome):
    raise RuntimeError(outcome[1])


def series(per_thousand, noise, seed, count=18, calls=64):
    """Samples of a process that grows by so many MiB in a thousand calls, after a start that fills caches."""
    scatter = random.Random(seed)
    return [
        Sample(i / 6, i * calls, 900 - 40 * 0.3**i + per_thousand * i * calls / 1000 + scatter.gauss(0, noise))
        for i in range(count)
    ]


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_a_flat_process_passes_however_noisy(noise):
    found = [trend(series(0.0, noise, seed)).leaks(13.5) for seed in range(200)]
    assert sum(found) <= 4


def test_a_leak_of_a_block_in_a_thousand_calls_fails():
    for seed in range(50):
        found = trend(series(13.5, 0.5, seed))
        assert found.leaks(13.5) and 9 < found.per_thousand < 18 and found.last > found.first
        assert found.per_minute == pytest.approx(found.per_thousand * 6 * 64 / 1000)
        assert not trend(series(1.0, 0.5, seed)).leaks(13.5)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="7 samples of memory are too few to tell a leak from noise; run longer"):
        trend(series(0.0, 1.0, 0, count=7))


def test_contexts_of_other_threads_close_while_one_is_open(tiny):
    """The last to leave puts the originals back, whoever it is."""
    before = Snapshot.of(tiny)
    v = sf.SteeringVector({sf.resid_post[1]: torch.ones(32)})
    opened = [sf.steer(tiny, v, float(i)) for i in range(CALLERS)]
    ready, closing = threading.Barrier(CALLERS), list(range(CALLERS))
    random.Random(0).shuffle(closing)

    def enter(i):
        opened[i].__enter__()
        ready.wait()
        opened[closing[i]].close()

    threads = [threading.Thread(target=enter, args=(i,)) for i in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not before.differences(Snapshot.of(tiny))
    assert_same_bits(logits(tiny), logits(small()))
