"""Thousands of damaged files: each gives a SteerError or the vector that was saved, never anything else.

`identical` is the oracle for whatever loads: a change in bytes that nothing protects (white space in
JSON, a zip time stamp) may load, and may not change one bit of the vector. The `.pt` is damaged with
its checksum forged to match, or `torch.load` would never see it. A second round forges every checksum:
then a changed vector may load, but only a valid one. Files of others (`.pt`, GGUF, data sets, checkpoints,
what requests ask of vLLM) are damaged where their structure is: there every outcome is a value or one sentence.

A few hundred mutations of each run by default; `STEERFN_FUZZ=20000` in the environment runs as many.
"""

import hashlib
import io
import json
import os
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import steerfn as sf
from steerfn.engines.vllm._requests import MOST, parse
from steerfn.run import _checkpoint
from steerfn.values import json_sha256
from steerfn.values._errors import SteerError
from steerfn.values._site import attn_out, head_out, resid_post
from steerfn.values._vector import SteeringVector
from steerfn.values.files import _document, _json_pt
from steerfn.values.files._save_load import load, save

MUTATIONS = int(os.environ.get("STEERFN_FUZZ", "200"))
SECONDS = 10 + 0.02 * MUTATIONS
"""Of processor time for one format; a mutation takes about a millisecond."""
FIRST = int(os.environ.get("STEERFN_FUZZ_SEED", "0"))
"""Added to the seeds, for other mutations than those of last time."""

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, ord('"'), ord("{"), ord("["), ord("."), ord("}"))
VALUES = (None, True, 0, -1, 2**63, 10**400, 1.5, -0.0, "", "x", "../v.pt", "\ud800", [], [[]], {}, {"a": {}})


def vector() -> SteeringVector:
    generator = torch.Generator().manual_seed(0)
    directions = {
        resid_post[12]: torch.randn(6, generator=generator),
        attn_out[-1]: torch.randn(6, generator=generator).bfloat16(),
        head_out[3, 1]: torch.randn(2, generator=generator).double(),
        resid_post[0]: torch.randn(6, generator=generator).half(),
    }
    return SteeringVector(directions, {"method": "caa", "model": {"name": "m", "d_model": 6}, "counts": [1, 2.5, None]})


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to three changes to the bytes of a file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(len(changed) + 1)
        span = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.choice(("flip", "flip", "set", "cut", "insert", "delete", "splice", "number", "double")):
            case "flip" if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case "set" if place < len(changed):
                changed[place] = rng.choice(INTERESTING)
            case "cut":
                del changed[place:]
            case "insert":
                changed[place:place] = rng.randbytes(span)
            case "delete":
                del changed[place : place + span]
            case "splice":
                begin = rng.randrange(len(data))
                changed[place : place + span] = data[begin : begin + span]
            case "number":
                value = rng.choice((0, 1, 2**15, 2**31 - 1, 2**32 - 1, rng.randrange(2**32)))
                changed[place : place + 4] = struct.pack("<I", value)
            case "double":
                changed[place:place] = changed[place : place + span] * 2
        if not changed:
            break
    return bytes(changed)


def swap(value: object, rng: random.Random) -> object:
    """A JSON value with one place in it changed, removed, renamed or moved."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        copy = value.copy()
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        match rng.choice(("into", "into", "into", "drop", "move", "rename")):
            case "drop":
                del copy[key]
            case "move":
                other = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
                copy[key], copy[other] = copy[other], copy[key]
            case "rename" if isinstance(copy, dict):
                copy[rng.choice(("sites", "resid_post[1]", "", "x", "__metadata__"))] = copy.pop(key)
            case _:
                copy[key] = swap(copy[key], rng)
        return copy
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-8, -1, 1, 8))
    if isinstance(value, str) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice("0193[],-: é") + value[place + 1 :]
    return rng.choice(VALUES)


def with_header(data: bytes, change: Callable[[dict], object]) -> bytes:
    """A safetensors file with another header, of the right length."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    text = json.dumps(change(json.loads(data[8:end]))).encode()
    return struct.pack("<Q", len(text)) + text + data[end:]


def sealed(document: object) -> object:
    """A document with the checksum that belongs to it."""
    if not isinstance(document, dict):
        return document
    document = {k: v for k, v in document.items() if k != "document_sha256"}
    return {**document, "document_sha256": _document._seal(document)}


def outcome(path: Path) -> SteeringVector | None:
    try:
        return load(path)
    except SteerError as error:
        message = str(error)
        assert message.endswith(".") and "\n" not in message and len(message) < 1500, message
        return None


def run(path: Path, mutate: Callable[[random.Random], object], seed: int) -> None:
    """Mutate and load again and again: identical, or refused, and in time."""
    original, loaded, start = vector(), 0, time.process_time()
    for i in range(MUTATIONS):
        mutate(random.Random(FIRST + seed + i))
        found = outcome(path)
        assert found is None or found.identical(original), f"mutation {i} changed the vector"
        loaded += found is not None
    assert loaded < MUTATIONS / 2, "the mutations hardly reach anything"
    assert time.process_time() - start < SECONDS


def test_safetensors(tmp_path):
    path = save(vector(), tmp_path / "v.safetensors")
    data = path.read_bytes()

    def mutate(rng: random.Random) -> None:
        match rng.choice(("bytes", "bytes", "bytes", "length", "header", "document")):
            case "bytes":
                changed = damage(data, rng)
            case "length":
                changed = (
                    struct.pack("<Q", rng.choice((0, 2, 2**63, rng.randrange(2000), rng.randrange(2**64)))) + data[8:]
                )
            case "header":
                changed = with_header(data, lambda header: swap(header, rng))
            case _:

                def change(header: dict) -> dict:
                    document = swap(json.loads(header["__metadata__"]["steerfn"]), rng)
                    return {**header, "__metadata__": {"steerfn": json.dumps(document)}}

                changed = with_header(data, change)
        path.write_bytes(changed)

    run(path, mutate, seed=1_000_000)


def test_json(tmp_path):
    path = save(vector(), tmp_path / "v.json")
    data = path.read_bytes()

    def mutate(rng: random.Random) -> None:
        if rng.random() < 0.6:
            path.write_bytes(damage(data, rng))
        else:
            path.write_text(json.dumps(swap(json.loads(data), rng)))

    run(path, mutate, seed=2_000_000)


def test_pt(tmp_path):
    path = save(vector(), tmp_path / "v.json")
    beside = path.with_name(json.loads(path.read_text())["tensors"]["file"])
    data, document = beside.read_bytes(), json.loads(path.read_text())

    def mutate(rng: random.Random) -> None:
        changed = damage(data, rng)
        beside.write_bytes(changed)
        digest = hashlib.sha256(changed).hexdigest() if rng.random() < 0.9 else document["tensors"]["sha256"]
        path.write_text(json.dumps(sealed({**document, "tensors": {"file": beside.name, "sha256": digest}})))

    run(path, mutate, seed=3_000_000)


def test_pickle_in_a_sound_archive(tmp_path):
    """Bit flips in a zip mostly fail its own checksums; here they are right and only the pickle is damaged."""
    path = save(vector(), tmp_path / "v.json")
    beside = path.with_name(json.loads(path.read_text())["tensors"]["file"])
    members, document = _json_pt._members(beside.read_bytes()), json.loads(path.read_text())

    def mutate(rng: random.Random) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"archive/{name}", damage(content, rng) if name == "data.pkl" else content)
        beside.write_bytes(buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        path.write_text(json.dumps(sealed({**document, "tensors": {"file": beside.name, "sha256": digest}})))

    run(path, mutate, seed=4_000_000)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_forged_checksums(tmp_path, suffix, monkeypatch):
    """With every checksum right, what loads is a vector that could have been made by hand."""
    monkeypatch.setattr(_document, "_digest", lambda tensors: "0" * 64)
    path = save(vector(), tmp_path / f"v{suffix}")
    data = path.read_bytes()
    for i in range(MUTATIONS // 2):
        rng = random.Random(FIRST + 5_000_000 + i)
        if suffix == ".json":
            path.write_text(json.dumps(sealed(swap(json.loads(data), rng))))
        elif rng.random() < 0.5:
            flipped = bytearray(data)
            flipped[rng.randrange(len(data) - 80, len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
        else:

            def change(header: dict, rng: random.Random = rng) -> dict:
                document = sealed(swap(json.loads(header["__metadata__"]["steerfn"]), rng))
                return {**header, "__metadata__": {"steerfn": json.dumps(document)}}

            path.write_bytes(with_header(data, change))
        found = outcome(path)
        if found is not None:
            again = SteeringVector(dict(zip(found.sites, found.directions, strict=True)), found.metadata)
            assert again.identical(found) and len(found) == 4


def sentence(call: Callable[[], object]) -> object:
    """What a call gives, or None where it says in one sentence why not."""
    try:
        return call()
    except SteerError as error:
        message = str(error)
        assert message.endswith(".") and "\n" not in message and len(message) < 1500, message
        return None


def every(mutate: Callable[[random.Random], object], seed: int) -> None:
    """Every mutation gives a value or a sentence, some of them each, and in time."""
    start, values = time.process_time(), 0
    for i in range(MUTATIONS):
        values += sentence(lambda i=i: mutate(random.Random(FIRST + seed + i))) is not None
    assert 0 < values < MUTATIONS, "the mutations reach nothing, or break nothing"
    assert time.process_time() - start < SECONDS


def repacked(members: dict[str, bytes], rng: random.Random) -> bytes:
    """An archive of torch.save, sound as such, in which the pickle or a storage was damaged."""
    buffer, chosen = io.BytesIO(), rng.choice(["data.pkl", "data.pkl", *members])
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", damage(content, rng) if name == chosen else content)
    return buffer.getvalue()


def test_pt_of_others(tmp_path):
    path, buffer = tmp_path / "vec_layer_1.pt", io.BytesIO()
    rows = torch.randn(3, 8)
    held = {
        1: rows[0],
        "layer_2": torch.nn.Parameter(rows[1]),
        3: [0.5] * 8,
        4: rows[2].bfloat16().float(),
        -1: rows[2],
    }
    torch.save(held, buffer)
    members = _json_pt._members(buffer.getvalue())

    def mutate(rng: random.Random) -> object:
        path.write_bytes(repacked(members, rng))
        return sf.files.from_pt(path)

    every(mutate, seed=6_000_000)


def test_gguf(tmp_path):
    pytest.importorskip("gguf")
    path = save(SteeringVector({1: torch.ones(8), 3: torch.arange(8.0)}, {"method": "caa"}), tmp_path / "v.gguf")
    data = path.read_bytes()
    own = data.index(b'{"format"')
    length = struct.unpack("<Q", data[own - 8 : own])[0]
    document = json.loads(data[own : own + length])

    def mutate(rng: random.Random) -> object:
        if rng.random() < 0.7:
            path.write_bytes(damage(data, rng))
        else:  # of the same length, so that what follows stays where it is said to be
            text = json.dumps(sealed(swap(document, rng))).encode()[:length].ljust(length)
            path.write_bytes(data[:own] + text + data[own + length :])
        found = load(path)
        assert all(np.isfinite(direction.numpy()).all() for direction in found.directions)
        return found

    every(mutate, seed=7_000_000)


SETS = {
    "a.json": [["good day", "bad day"], ["yes", "no"]],
    "b.json": {"positive": ["a", "b"], "negative": ["c"], "description": "x"},
    "c.json": [{"question": "q?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}] * 2,
    "d.json": {"pairs": [[[{"role": "user", "content": "a"}], "b"]]},
}


def test_contrast_sets(tmp_path):
    def mutate(rng: random.Random) -> object:
        name = rng.choice([*SETS, "e.csv", "f.jsonl"])
        text = 'positive,negative\n"a, b",c\nd,e\n' if name == "e.csv" else json.dumps(swap(SETS.get(name, [1]), rng))
        text = '["a","b"]\n["c","d"]\n' if name == "f.jsonl" else text
        data = text.encode()
        (tmp_path / name).write_bytes(damage(data, rng) if name[0] in "ef" or rng.random() < 0.5 else data)
        return sf.datasets.from_file(tmp_path / name)

    every(mutate, seed=8_000_000)


def test_checkpoints_of_sweeps(tmp_path):
    path, found = tmp_path / "s.json", {"0 0": "a", "3": [[-1.0, 0.5]]}
    partial = _checkpoint.Partial(path, "a sweep")
    partial.add(found)
    partial.write()
    document = json.loads(path.read_text())

    def mutate(rng: random.Random) -> object:
        changed = swap(document, rng)
        if rng.random() < 0.5 and isinstance(changed, dict) and isinstance(changed.get("found"), dict):
            changed = {**changed, "sha256": json_sha256(changed["found"])}
        data = json.dumps(changed).encode()
        path.write_bytes(damage(data, rng) if rng.random() < 0.3 else data)
        return _checkpoint.Partial(path, "a sweep").results

    every(mutate, seed=9_000_000)


def test_what_requests_ask_of_vllm():
    asked = [{"vector": "happy", "alpha": 2.0, "layers": [1, 2]}, "calm", {"vector": "sad", "operation": "ablate"}]

    def mutate(rng: random.Random) -> object:
        value = swap(asked * rng.choice((1, 1, 3)), rng)
        for _ in range(rng.choice((0, 1, 1, 2))):
            value = json.dumps(value)
            value = damage(value.encode(), rng).decode(errors="surrogateescape") if rng.random() < 0.3 else value
        found = parse(value)
        assert 1 <= len(found) <= MOST
        return found

    every(mutate, seed=10_000_000)
