"""Checkpoints: a run that is stopped at any point continues and ends with the bits of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from differences import Differences, differences
from families import build
from words import words

import steerfn as sf
from steerfn.discover._engine._checkpoint import identity
from steerfn.discover._engine._contrast import contrast
from steerfn.discover._engine._discover import discover
from steerfn.discover._engine._job import job
from steerfn.discover._mean_difference import MeanDifference
from steerfn.model._provenance import digest
from steerfn.run import _checkpoint
from steerfn.values._struct import struct

POSITIVE = ["a b c", "d e f g", "h i", "j k l m n", "a b d", "e", "o p q r s t"]
NEGATIVE = ["o p", "q r s t", "u", "a b", "v w x", "y z", "a b c d"]
SITES = [0, sf.attn_out[1], sf.resid_post[2]]
METHODS = {"unpaired": sf.mean_difference, "paired": differences}


class Passes:
    """A model that counts its forward passes, and raises or waits in one of them."""

    def __init__(self):
        self.model, self.seen, self.fatal, self.error = build("llama"), 0, None, KeyboardInterrupt
        self.model.model.embed_tokens.register_forward_pre_hook(self._before)

    def _before(self, *_):
        self.seen += 1
        if self.seen == self.fatal:
            raise self.error("here")

    def run(self, method=sf.mean_difference, fatal=None, **options):
        options = {"batch_size": 2, "progress": False, **options}
        sites, tokenizer = options.pop("sites", SITES), options.pop("tokenizer", words())
        self.fatal = None
        sf.activations(self.model, words(), ["a b", "a c"], sites, progress=False)  # asks what the model can, once
        self.seen, self.fatal = 0, fatal
        return method(self.model, tokenizer, POSITIVE, NEGATIVE, sites, **options)


@pytest.fixture
def passes():
    return Passes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.v1.checkpoint"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_interrupted_anywhere_ends_with_the_same_bits(passes, path, method, error):
    passes.error = error
    whole = passes.run(METHODS[method])
    batches = passes.seen
    assert batches >= 7
    for fatal in range(2, batches + 1):
        with pytest.raises(error, match="here"):
            passes.run(METHODS[method], fatal, checkpoint=path)
        assert path.exists()
        resumed = passes.run(METHODS[method], checkpoint=str(path))
        assert resumed.identical(whole) and passes.seen == batches - fatal + 1
        assert not path.exists()


def test_halves_of_pairs_wait_in_the_file(passes, path):
    """Otherwise the paired cases above would not try what they are there for."""
    with pytest.raises(KeyboardInterrupt):
        passes.run(differences, 3, checkpoint=path)
    tensors = safetensors.torch.load_file(path)
    counts = [len(tensors[str(i)]) for i in range(len(tensors)) if tensors[str(i)].ndim == 2]
    kept, waiting = counts[: len(SITES)], counts[len(SITES) :]
    assert sum(waiting) > 0 and 0 < 2 * sum(kept) + sum(waiting) < len(SITES) * (len(POSITIVE) + len(NEGATIVE))


def test_a_run_may_be_interrupted_many_times_and_before_it_has_read_anything(passes, path):
    whole = passes.run()
    with pytest.raises(KeyboardInterrupt):
        passes.run(fatal=1, checkpoint=path)
    assert not path.exists()
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            passes.run(fatal=2, checkpoint=path)
    assert passes.run(checkpoint=path).identical(whole)


def test_an_automatic_batch_size_and_an_interrupted_progress_bar(passes, path, monkeypatch):
    monkeypatch.setattr("steerfn.run._read.TOKENS", (12, 12))
    apart = {"batch_size": "auto", "tokenizer": words(bos=False)}  # with one beginning all texts would be one row
    whole = passes.run(**apart)
    assert passes.seen > 3
    updates = []

    def update(bar, n=1):
        updates.append(n)
        if len(updates) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tqdm.tqdm.update", update)
        with pytest.raises(KeyboardInterrupt):
            passes.run(**apart, progress=True, checkpoint=path)
    assert passes.run(**apart, checkpoint=path).identical(whole)


CHILD = """
import sys
import torch
torch.set_num_threads(1)
from differences import differences
from families import build
from words import words
import steerfn as sf
from steerfn.run import _checkpoint
from test_checkpoint import NEGATIVE, POSITIVE, SITES

_checkpoint.INTERVAL = _checkpoint.PATIENCE = 0
model, passes = build("llama"), iter(range(2))

def hook(*_):
    if next(passes, None) is None:  # the third stands still
        print("two passes", flush=True)
        sys.stdin.read()

sf.activations(model, words(), ["a b", "a c"], SITES, progress=False)  # asks what the model can, once
model.model.embed_tokens.register_forward_pre_hook(hook)
differences(model, words(), POSITIVE, NEGATIVE, SITES, batch_size=2, progress=False, checkpoint=sys.argv[1])
"""


def test_a_process_that_is_killed(passes, path):
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CHILD, path], env=environment, **pipes) as child:
        assert child.stdout.readline() == b"two passes\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and path.exists()
    whole = passes.run(differences)
    batches = passes.seen
    assert passes.run(differences, checkpoint=path).identical(whole) and 0 < passes.seen < batches


def test_it_is_written_every_few_seconds_and_at_the_end(passes, path, monkeypatch):
    written = []
    original = _checkpoint.write_together
    monkeypatch.setattr(_checkpoint, "write_together", lambda files: (written.append(1), original(files)))
    passes.run(checkpoint=path)
    assert len(written) == 1
    monkeypatch.setattr(_checkpoint, "INTERVAL", 0)
    monkeypatch.setattr(_checkpoint, "PATIENCE", 0)
    passes.run(checkpoint=path)
    assert len(written) == 1 + passes.seen
    monkeypatch.setattr(_checkpoint, "PATIENCE", 1e9)  # a write is as long as many batches
    passes.run(checkpoint=path)
    assert len(written) == 1 + passes.seen + 2


@struct
class Unfinished(MeanDifference):
    def finalize(self, state):
        raise RuntimeError("no direction")


def test_what_was_read_stays_until_the_vector_is_made(passes, path):
    def unfinished(*arguments, **options):
        return discover(Unfinished(), *arguments, **options)

    for passed in (7, 0):
        with pytest.raises(RuntimeError, match="no direction"):
            passes.run(unfinished, checkpoint=path)
        assert path.exists() and passes.seen >= passed and (passed or not passes.seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sites": 1},
            "with different sites (resid_post[0], attn_out[1], resid_post[2] there, resid_post[1] here); delete",
        ),
        ({"batch_size": 3}, "with different batch size (2 texts there, 3 texts here), rows ("),
        ({"position": "mean"}, "with different texts (7 of 14 positive, "),
        ({"method": differences}, "with different method (mean_difference "),
    ],
)
def test_another_run_is_refused(passes, path, change, message):
    with pytest.raises(KeyboardInterrupt):
        passes.run(fatal=2, checkpoint=path)
    with pytest.raises(sf.FileError) as caught:
        passes.run(**change, checkpoint=path)
    text = str(caught.value)
    assert text.startswith(f"The checkpoint '{path}' belongs to another run, with different ") and message in text
    assert text.endswith(" here); delete the file or choose another path.") and path.exists()


def test_other_parameters_weights_steering_texts_and_sides_are_other_runs(passes):
    model = passes.model

    def of(method=None, positive=POSITIVE, negative=NEGATIVE):
        texts = contrast(words(), positive, negative, position="last", chat=False, paired=False)
        return identity(job(model, texts, method or MeanDifference(), 1, "auto"), model)

    def changed(other):
        return {name for name in other if other[name] != first[name]}

    first = of()
    assert not changed(of()) and first == {**first, "steering": "none"}
    assert changed(of(negative=[*NEGATIVE[:-1], "z"])) == {"texts", "rows"}
    assert changed(of(positive=POSITIVE[:-1], negative=[POSITIVE[-1], *NEGATIVE])) == {"texts"}
    assert changed(of(Differences())) == {"method"} and of(Differences()) != of(Differences(2.0))
    with sf.steer(model, sf.SteeringVector({sf.resid_post[0]: torch.ones(32)})):
        once = of()
    with sf.steer(model, sf.SteeringVector({sf.resid_post[0]: torch.ones(32)}), 2.0):
        twice = of()
    assert once["steering"] != twice["steering"] and {"steering"} <= changed(once)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1.001
    assert changed(of()) == {"model"}


def test_a_digest_knows_values_and_not_addresses():
    assert digest([MeanDifference(), len, object()]) == digest([MeanDifference(), len, object()])
    values = [1, 1.0, True, "1", b"1", None, (1,), {"a": 1}, {"a": 2}, torch.ones(1), torch.ones(1, 1), [[], 1], [[1]]]
    assert len(set(map(digest, values))) == len(values)


def interrupted(passes, path):
    with pytest.raises(KeyboardInterrupt):
        passes.run(fatal=4, checkpoint=path)
    return path.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_file_is_refused(passes, path, damage):
    data = interrupted(passes, path)
    # The last bytes are zeros of an unused side or a float; the middle is certainly a tensor's.
    flipped = bytearray(data)
    flipped[-9] ^= 1
    path.write_bytes({"cut": data[:-40], "flipped": bytes(flipped), "empty": b"", "text": b"a b c" * 20}[damage])
    with pytest.raises(sf.FileError) as caught:
        passes.run(checkpoint=path)
    text = str(caught.value)
    assert text.startswith(f"Cannot continue from the checkpoint '{path}': ")
    assert text.endswith("; delete it to begin anew, or choose another path.")
    assert damage != "flipped" or "it was changed since it was written (the SHA-256 does not match)" in text


def test_other_files_and_places_are_refused(passes, tmp_path):
    vector = sf.save(passes.run(), tmp_path / "vector.safetensors")
    cases = {
        vector: f"'{vector}' is not a steerfn checkpoint, so it is left unchanged; choose another path.",
        tmp_path: f"The checkpoint cannot be written to '{tmp_path}': it is a folder; name a file.",
        tmp_path / "no" / "run": f"there is no folder '{tmp_path / 'no'}'; create it first.",
        5: "The checkpoint is named by text or a Path, not by 5 of type int.",
    }
    for place, message in cases.items():
        with pytest.raises(sf.FileError) as caught:
            passes.run(checkpoint=place)
        assert message in str(caught.value) and not passes.seen
    assert sf.load(vector)


def test_a_disk_that_refuses(passes, path, monkeypatch):
    def refuse(files):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_checkpoint, "write_together", refuse)
    with pytest.raises(sf.FileError) as caught:
        passes.run(checkpoint=path)
    assert f"The checkpoint cannot be written to '{path}': No space left on device; what was" in str(caught.value)
    with (
        pytest.warns(sf.SteerWarning, match="what it read last is lost: The checkpoint cannot be"),
        pytest.raises(KeyboardInterrupt),
    ):
        passes.run(fatal=3, checkpoint=path)


@struct
class Counting(MeanDifference):
    def init(self, width):
        return [super().init(width), 0]


def test_a_state_that_is_more_than_tensors_is_refused(passes, path):
    with pytest.raises(sf.DataError) as caught:
        passes.run(lambda *a, **k: discover(Counting(), *a, **k), checkpoint=path)
    assert str(caught.value) == (
        "The state of method 'mean_difference' holds a int besides tensors, so it cannot be kept in a checkpoint; "
        "keep numbers as tensors, or leave checkpoint out."
    )
