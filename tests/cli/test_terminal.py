"""What a file or a model says is read and does nothing: no command prints a control character that it was given."""

import io
import json
import re
import subprocess
import sys
import warnings

import pytest
import torch

import steerfn as sf
from steerfn.cli import main
from steerfn.cli._terminal import VisibleStream

FORGED = "caa\n  sha256: 0000\r\n  audited: yes\x1b[8m\x9b2J\u2028\u202e\x07\x1b[31m"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def forged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    v = sf.SteeringVector({sf.resid_post[1]: torch.ones(4)}, {"method": FORGED, f"a{FORGED}": {FORGED: [FORGED]}})
    return sf.save(v, tmp_path / "v.safetensors")


def test_inspect_has_one_line_for_each_thing_and_one_checksum(forged, capsys):
    assert main(["inspect", str(forged)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert not CONTROLS.search(out) and len(lines) == 6
    assert [line for line in lines if line.startswith("  sha256:")] == [
        f"  sha256: {sf.files.describe(forged)['sha256']}"
    ]
    assert r"method: caa\n  sha256: 0000\r\n  audited: yes\x1b[8m\x9b2J\u2028\u202e\x07\x1b[31m" in out
    assert main(["inspect", str(forged), "--json"]) == 0
    out = capsys.readouterr().out
    assert not CONTROLS.search(out) and json.loads(out)["metadata"]["method"] == FORGED


def test_repr_export_errors_and_warnings_are_one_line(forged, capsys):
    v = sf.load(forged)
    for text in (repr(v), str(v), repr(v.metadata), repr(sf.add(v))):
        assert not CONTROLS.search(text) and "\n" not in text
    assert len(repr(v.with_metadata(method="x" * 10**6))) < 200
    assert main(["export", str(forged), "w.safetensors"]) == 0
    assert main(["inspect", f"none{FORGED}.safetensors"]) == 2
    found = capsys.readouterr()
    assert not CONTROLS.search(found.out + found.err) and len((found.out + found.err).splitlines()) == 2
    for path in (f"none{FORGED}.safetensors", f"none{FORGED}.gguf", f"none{FORGED}"):
        with pytest.raises(sf.FileError) as caught:
            sf.load(path)
        assert not CONTROLS.search(str(caught.value)) and "\n" not in str(caught.value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(FORGED, sf.SteerWarning, stacklevel=1)
    assert "\n" not in str(caught[0].message) and not CONTROLS.search(str(caught[0].message))


def test_the_names_of_a_sweep_are_one_line_each():
    from steerfn.evaluate._configs import Config

    assert "\n" not in str(Config(FORGED, ("resid_post[1]",), 1.0))


def test_the_door_keeps_colours_and_nothing_else():
    there = io.StringIO()
    door = VisibleStream(there)
    print("\x1b[33mnew\x1b[0m \x1b[1;36mold\x1b[0m\ta\n\x1b[8mb\x1b]0;title\x07\ud800", file=door)
    assert there.getvalue() == ("\x1b[33mnew\x1b[0m \x1b[1;36mold\x1b[0m\ta\n\\x1b[8mb\\x1b]0;title\\x07\\ud800\n")
    assert door.isatty() is there.isatty()


@pytest.mark.heavy
def test_in_a_process_of_its_own(forged):
    done = subprocess.run([sys.executable, "-m", "steerfn.cli", "inspect", str(forged)], capture_output=True, text=True)
    assert done.returncode == 0 and not CONTROLS.search(done.stdout) and len(done.stdout.splitlines()) == 6
