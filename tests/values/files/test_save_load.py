"""Saving and loading: formats, names, atomicity, and what hostile files get."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from steerfn.values._errors import FileError, ModelError, ShapeError
from steerfn.values._metadata import Metadata
from steerfn.values._site import attn_out, head_out, resid_post
from steerfn.values._struct import replace
from steerfn.values._vector import SteeringVector
from steerfn.values.files import _atomic, _document, _json_pt, _save_load
from steerfn.values.files._save_load import FORMATS, Format, describe, load, save

SUFFIXES = (".safetensors", ".json")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def vector(seed: int = 0, dtype: torch.dtype = torch.float32) -> SteeringVector:
    random = torch.Generator().manual_seed(seed)
    sites = (resid_post[12], attn_out[-1], head_out[3, 1], resid_post[2])  # not in layer order
    directions = {site: torch.randn(8, generator=random).to(dtype) for site in sites}
    return SteeringVector(directions, {"method": "caa", "counts": [3, 4], "nested": {"a": None, "é": 0.1}})


def reseal(document: dict, **changes: object) -> dict:
    """The document with changes and a checksum that holds: what a forger would write."""
    document = {k: v for k, v in {**document, **changes}.items() if k != "document_sha256"}
    return {**document, "document_sha256": _document._seal(document)}


def tensor_file(path: Path) -> Path:
    """The tensor file that a .json names."""
    return path.with_name(json.loads(path.read_text())["tensors"]["file"])


def forge_pt(path: Path, data: bytes) -> None:
    """Put `data` in place of the tensors of a .json, with checksums that hold."""
    tensor_file(path).write_bytes(data)
    document = json.loads(path.read_text())
    tensors = {**document["tensors"], "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(reseal(document, tensors=tensors)))


def forge_safetensors(path: Path, header: object, body: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def refused(path: Path, text: str) -> str:
    """Loading gives one FileError: a sentence with the path and `text`."""
    with pytest.raises(FileError, match=re.escape(text)) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and message.endswith(".") and "\n" not in message and len(message) < 1000
    assert caught.value.__context__ is None  # no second traceback
    return message


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_bitwise(tmp_path, suffix, dtype):
    v = vector(dtype=dtype)
    path = save(v, tmp_path / f"happy{suffix}")
    back = load(path)
    assert path == tmp_path / f"happy{suffix}"
    assert back.identical(v) and back.sites == v.sites and back.dtype == dtype and back.metadata == v.metadata


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_extreme_values_survive(tmp_path, suffix):
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        values = torch.tensor([-0.0, 0.0, info.max, info.min, info.tiny, info.tiny / 2, info.eps], dtype=dtype)
        v = SteeringVector({0: values})
        assert load(save(v, tmp_path / f"v{suffix}")).identical(v)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mixed_dtypes_strides_and_gradients(tmp_path, suffix):
    v = SteeringVector({0: torch.randn(16)[::2], 1: torch.ones(1).expand(8).double(), 2: torch.ones(8).bfloat16()})
    v = replace(v, _directions=(v.directions[0].requires_grad_(), torch.arange(16.0).double()[::2], v.directions[2]))
    back = load(save(v, tmp_path / f"v{suffix}"))
    assert back.identical(v) and not any(d.requires_grad for d in back.directions)


def test_safetensors_file_is_plain_to_others(tmp_path):
    v = vector()
    tensors = safetensors.torch.load_file(save(v, tmp_path / "v.safetensors"))
    assert set(tensors) == {str(site) for site in v.sites}
    assert torch.equal(tensors["resid_post[12]"], v[12])


def test_pt_file_is_plain_to_torch(tmp_path):
    v = vector()
    path = save(v, tmp_path / "v.json")
    tensors = torch.load(tensor_file(path), weights_only=True)
    assert torch.equal(tensors["attn_out[-1]"], v[attn_out[-1]])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_describe(tmp_path, suffix):
    v = vector()
    told = describe(save(v, tmp_path / f"v{suffix}"))
    assert told["format"] == suffix[1:] and told["version"] == 1
    assert told["sites"] == [str(site) for site in v.sites] and told["metadata"] == v.metadata
    assert set(told["versions"]) == {"steerfn", "torch"} and told["versions"]["torch"] == torch.__version__
    assert re.fullmatch("[0-9a-f]{64}", told["sha256"])
    assert "versions" not in load(tmp_path / f"v{suffix}").metadata


def test_checksum_of_the_tensors_is_the_same_in_every_format(tmp_path):
    assert len({describe(save(vector(), tmp_path / f"v{s}"))["sha256"] for s in SUFFIXES}) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_twice_gives_the_same_bytes(tmp_path, suffix):
    paths = [
        save(vector(), tmp_path / folder / f"v{suffix}") for folder in ("a", "b") if not (tmp_path / folder).mkdir()
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pitfall_22_dots_in_names_are_kept(tmp_path, suffix):
    """The files of "llama-3.1" and "llama-3.2" are two."""
    first, second = vector(1), vector(2)
    save(first, tmp_path / f"llama-3.1{suffix}")
    save(second, str(tmp_path / f"llama-3.2{suffix}"))
    assert load(tmp_path / f"llama-3.1{suffix}").identical(first)
    assert load(str(tmp_path / f"llama-3.2{suffix}")).identical(second)
    names = {"llama-3.1", "llama-3.2"}
    files = {re.sub(r"\.[0-9a-f]{16}\.pt$", ".pt", p.name) for p in tmp_path.iterdir()}
    suffixes = {suffix} if suffix == ".safetensors" else {".json", ".pt"}
    assert files == {n + s for n in names for s in suffixes}


def test_unknown_suffix_appends_nothing(tmp_path):
    """pitfall 22: no suffix is made up."""
    for call in (lambda p: save(vector(), p), load, describe):
        with pytest.raises(
            FileError, match=r"\(\.safetensors, \.json, \.gguf\); name it for example 'llama-3\.1\.safetensors'"
        ):
            call(tmp_path / "llama-3.1")
    assert not list(tmp_path.iterdir())


def test_a_format_can_be_added(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, ".mine", Format(FORMATS[".safetensors"].encode, FORMATS[".safetensors"].decode, False))
    assert load(save(vector(), tmp_path / "v.mine")).identical(vector())


def test_odd_paths(tmp_path):
    with pytest.raises(FileError, match=r"pass 'happy\.json', which names it"):
        load(tmp_path / "happy.pt")
    for odd in (3, None, b"v.safetensors"):
        with pytest.raises(FileError, match="named by text or a Path"):
            load(odd)
    for odd in ("v\0.safetensors", "v" * 300 + ".json"):
        with pytest.raises(FileError, match="Cannot load"):
            load(tmp_path / odd)
        with pytest.raises(FileError, match="cannot be written to"):
            save(vector(), tmp_path / odd)
    refused(tmp_path / "none.safetensors", "there is no such file; check the name")
    (tmp_path / "folder.json").mkdir()
    refused(tmp_path / "folder.json", "it is not a regular file")
    with pytest.raises(FileError, match="cannot be written to"):
        save(vector(), tmp_path / "folder.json")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.json"]
    assert load(save(vector(), tmp_path / "V.SafeTensors")).identical(vector())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "v.safetensors")
    refused(tmp_path / "v.safetensors", "not a regular file")


# -- writing ---------------------------------------------------------------------------------------


def test_missing_folder(tmp_path):
    with pytest.raises(FileError, match=r"there is no folder '.*none'; create it first\."):
        save(vector(), tmp_path / "none" / "v.safetensors")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_overwrite(tmp_path, suffix):
    path = save(vector(1), tmp_path / f"v{suffix}")
    with pytest.raises(FileError, match="exists and overwrite=False; choose another name, or pass overwrite=True"):
        save(vector(2), path, overwrite=False)
    assert load(path).identical(vector(1))
    assert load(save(vector(2), path)).identical(vector(2))


def test_a_checkpoint_beside_the_name_is_not_overwritten(tmp_path):
    (tmp_path / "llama.pt").write_bytes(b"weights")
    for seed in range(2):
        assert load(save(vector(seed), tmp_path / "llama.json")).identical(vector(seed))
    assert (tmp_path / "llama.pt").read_bytes() == b"weights"


def test_a_pair_of_the_former_names_still_loads(tmp_path):
    path = save(vector(), tmp_path / "v.json")
    beside, document = tensor_file(path), json.loads(path.read_text())
    beside.rename(tmp_path / "v.pt")
    path.write_text(json.dumps(reseal(document, tensors={**document["tensors"], "file": "v.pt"})))
    assert load(path).identical(vector())


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_former_tensor_files_go_when_no_writer_can_be_about_to_name_them(tmp_path):
    path = tmp_path / "v.json"
    old, young, now = (tensor_file(save(vector(seed), path)) for seed in range(3))
    strangers = [tmp_path / "v.pt", tmp_path / f"w{old.name[1:]}", tmp_path / f"v.w{old.name[1:]}"]
    for stranger in strangers:
        stranger.write_bytes(b"theirs")
        age(stranger, 3600)
    age(old, 61)
    age(now, 61)
    save(vector(2), path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (path, young, now, *strangers)}


def test_a_reader_beside_a_writer_takes_the_new_pair(tmp_path, monkeypatch):
    """The writer replaces the JSON, and the old tensors are gone before they are read."""
    path = save(vector(1), tmp_path / "v.json")
    old, real, reads = tensor_file(path), _save_load.read_bytes, []

    def read(file, limit):
        data = real(file, limit)
        if not reads:
            save(vector(2), path)
            old.unlink()
        reads.append(file)
        return data

    monkeypatch.setattr(_save_load, "read_bytes", read)
    assert load(path).identical(vector(2)) and len(reads) > 2
    tensor_file(path).unlink()
    refused(path, "is not beside it")


def write_often(path: str, seed: int, barrier: Any, read_enough: Any) -> None:
    torch.set_num_threads(1)
    barrier.wait()
    while not read_enough.is_set():
        save(vector(1000 * seed), path)
    save(vector(1000 * seed + 1), path)


@pytest.mark.heavy
def test_writers_of_one_name_leave_a_whole_vector_and_readers_see_whole_ones(tmp_path):
    context = multiprocessing.get_context("spawn")
    for suffix in SUFFIXES:
        path, barrier, read_enough = save(vector(), tmp_path / f"v{suffix}"), context.Barrier(3), context.Event()
        writers = [context.Process(target=write_often, args=(str(path), k, barrier, read_enough)) for k in (1, 2)]
        for each in writers:
            each.start()
        barrier.wait(250)
        for _ in range(20):
            load(path)
        read_enough.set()
        for each in writers:
            each.join()
        assert any(load(path).identical(vector(1000 * k + 1)) for k in (1, 2))


def test_what_killed_runs_left_goes_at_the_next_write(tmp_path):
    left, young, stranger = (tmp_path / f".steerfn-{name}.tmp" for name in ("0" * 16, "1" * 16, "notes"))
    for file in (left, young, stranger):
        file.write_bytes(b"half")
    age(left, 7200)
    age(stranger, 7200)
    path = save(vector(), tmp_path / "v.safetensors")
    assert set(tmp_path.iterdir()) == {path, young, stranger}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_permissions_of_a_file_that_is_replaced_are_kept(tmp_path, suffix):
    path = save(vector(1), tmp_path / f"v{suffix}")
    path.chmod(0o600)
    save(vector(2), path)
    written = [path] if suffix == ".safetensors" else [path, tensor_file(path)]
    assert [stat.S_IMODE(p.stat().st_mode) for p in written] == [0o600] * len(written)


@pytest.mark.parametrize(("suffix", "nth"), [(".safetensors", 1), (".json", 1), (".json", 2)])
@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("kind", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, suffix, call, nth, kind):
    path = save(vector(1), tmp_path / f"v{suffix}")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real, calls = getattr(os, call), []

    def fail(*args):
        calls.append(args)
        if len(calls) == nth:
            raise kind
        return real(*args)

    monkeypatch.setattr(_atomic.os, call, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(kind, KeyboardInterrupt) else FileError) as caught:
        save(vector(2), path)
    monkeypatch.undo()
    if caught.type is FileError:
        assert "No space left on device; what was there before is unchanged" in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before  # and no temporary file
    assert load(path).identical(vector(1))


def test_a_failed_first_write_leaves_nothing(tmp_path, monkeypatch):
    real = os.replace
    monkeypatch.setattr(_atomic.os, "replace", lambda a, b: real(a, b) if str(b).endswith(".pt") else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(vector(), tmp_path / "v.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, umask):
    former = os.umask(umask)
    try:
        for suffix in SUFFIXES:
            save(vector(), tmp_path / f"v{suffix}")
    finally:
        os.umask(former)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o666 & ~umask}


def test_save_refuses_what_load_would(tmp_path):
    v = vector()
    with pytest.raises(ShapeError, match="NaN or infinite"):
        save(v * 1e38 * 1e38, tmp_path / "v.safetensors")
    with pytest.raises(FileError, match=r"it has \d+ bytes|header of \d+ bytes"):
        save(v.with_metadata(notes="x" * (11 * 2**20)), tmp_path / "v.safetensors")
    with pytest.raises(FileError, match="Cannot save this vector"):
        save(v.with_metadata(notes="x" * (11 * 2**20)), tmp_path / "v.json")
    with pytest.raises(FileError, match="its directions cannot be read here"):
        save(replace(v, _directions=tuple(d.to("meta") for d in v.directions)), tmp_path / "v.json")
    with pytest.raises(FileError, match=r"writes a SteeringVector, not a Tensor; pass sf\.save\(vector, path\)"):
        save(torch.ones(3), tmp_path / "v.json")
    assert not list(tmp_path.iterdir())


def test_metadata_that_json_strains_at(tmp_path):
    odd = {"surrogate": "\ud800", "zero": -0.0, "tiny": 5e-324, "big": 10**300, "quote": '"\\\n\0', "": [[], {}]}
    v = replace(vector(), metadata=Metadata(odd))
    for suffix in SUFFIXES:
        back = load(save(v, tmp_path / f"v{suffix}"))
        assert back.identical(v) and str(back.metadata["zero"]) == "-0.0"


# -- reading damaged and hostile files -------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_in_a_tensor(tmp_path, suffix):
    path = save(vector(), tmp_path / f"v{suffix}")
    file = tensor_file(path) if suffix == ".json" else path
    data = bytearray(file.read_bytes())
    place = data.index(bytes(vector()[2].view(torch.uint8).numpy()))
    data[place] ^= 1
    file.write_bytes(data)
    refused(path, "(the SHA-256 does not match)")
    if suffix == ".json":  # with a checksum forged for the file, that of the archive and that of the tensors remain
        forge_pt(path, bytes(data))
        refused(path, "damaged archive (BadZipFile: Bad CRC-32")


def test_changed_metadata(tmp_path):
    path = save(vector(), tmp_path / "v.json")
    path.write_text(path.read_text().replace('"caa"', '"cab"'))
    refused(path, "its document was changed since it was saved")


def test_white_space_and_key_order_are_free(tmp_path):
    path = save(vector(), tmp_path / "v.json")
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=7))
    assert load(path).identical(vector())


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**9, 11 * 2**20, 500])
def test_absurd_header_length(tmp_path, length):
    path = tmp_path / "v.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    refused(path, f"it claims a header of {length} bytes and has 10 in all")


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 8, b"PK\x03\x04" * 10, b"\x80\x04N."])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_not_a_vector_file(tmp_path, suffix, data):
    (tmp_path / f"v{suffix}").write_bytes(data)
    refused(tmp_path / f"v{suffix}", "Cannot load")


def test_safetensors_of_others(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "v.safetensors", metadata={"format": "pt"})
    assert "build the vector from its tensors" in refused(tmp_path / "v.safetensors", "was not saved by steerfn")


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64]}, "overlap or leave a gap"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [0, 64]}, "not a 1-D floating-point tensor"),
        ({"dtype": "F32", "shape": [-8], "data_offsets": [32, 0]}, "not a 1-D floating-point tensor"),
        ({"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}, "not a 1-D floating-point tensor"),
        ({"dtype": "I32", "shape": [8], "data_offsets": [0, 32]}, "not a 1-D floating-point tensor"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [4, 36]}, "overlap or leave a gap"),
        ({"dtype": "F32", "shape": [8.0], "data_offsets": [0, 32]}, "not a 1-D floating-point tensor"),
        ([], "not a 1-D floating-point tensor"),
        (None, "not a 1-D floating-point tensor"),
    ],
)
def test_safetensors_entries_that_lie(tmp_path, entry, text):
    path = save(vector(), tmp_path / "v.safetensors")
    header, body = header_of(path)
    name = next(n for n, e in header.items() if n != "__metadata__" and e["data_offsets"][0] == 0)
    forge_safetensors(path, header | {name: entry}, body)
    refused(path, text)


def test_safetensors_with_bytes_left_over(tmp_path):
    path = save(vector(), tmp_path / "v.safetensors")
    path.write_bytes(path.read_bytes() + b"\0" * 32)
    refused(path, "its header describes 128 bytes of tensors and 160 follow")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"format": "steerfn", "format": "steerfn"}', "repeats a key"),
        (b'{"a": ' + b"1" * 5000 + b"}", "an integer of 5000 digits"),
        (b'{"a": 1e999}', "1e999, which is not a JSON number"),
        (b'{"a": NaN}', "NaN, which is not a JSON number"),
        (b"\xff\xfe{}", "does not hold valid JSON"),
        (b"\xef\xbb\xbf{}", "does not hold valid JSON"),
        (b"null", "not a steerfn document"),
        (b'{"format": "other"}', "not a steerfn document; load a file that sf.save wrote"),
        (b'{"format": "steerfn", "version": 2}', "it has format version 2 and this steerfn reads 1; update steerfn"),
        (b'{"format": "steerfn", "version": true}', "format version True"),
        (b'{"format": "steerfn", "version": 1}', "the entry 'sites' of its document is missing"),
        (b" " * (11 * 2**20), "bytes, more than the limit of 10485760 bytes"),
    ],
)
def test_hostile_json(tmp_path, text, told):
    (tmp_path / "v.json").write_bytes(text)
    refused(tmp_path / "v.json", told)
    if len(text) < 2**20:
        forge_safetensors(tmp_path / "v.safetensors", {"__metadata__": {"steerfn": text.decode("latin-1")}})
        refused(tmp_path / "v.safetensors", "Cannot load")
        forge_safetensors(tmp_path / "v.safetensors", text)
        refused(tmp_path / "v.safetensors", "Cannot load")


@pytest.mark.parametrize(
    "site",
    [
        "resid_post[0:999999999]",
        "resid_post[012]",
        "resid_post[1_2]",
        "resid_post[ 12]",
        "weights",
        "resid_post[" + "9" * 6000 + "]",
        "resid_post[12, 3]",
        "head_out[12]",
        "",
        "\ud800",
    ],
)
def test_names_that_are_no_site(tmp_path, site):
    path = save(SteeringVector({12: torch.ones(8)}), tmp_path / "v.safetensors")
    header, body = header_of(path)
    document = reseal(json.loads(header["__metadata__"]["steerfn"]), sites=[site])
    forge_safetensors(path, {"__metadata__": {"steerfn": json.dumps(document)}, site: header["resid_post[12]"]}, body)
    refused(path, "Cannot load" if site == "\ud800" else "names no single site; name tensors as in 'resid_post[12]'")


@pytest.mark.parametrize("sites", [[], ["resid_post[12]"] * 2, [["resid_post[12]"]], [3], ["resid_post[13]"]])
def test_sites_that_are_not_those_of_the_tensors(tmp_path, sites):
    path = save(SteeringVector({12: torch.ones(8)}), tmp_path / "v.json")
    path.write_text(json.dumps(reseal(json.loads(path.read_text()), sites=sites)))
    refused(path, "its list of sites")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_tensors(tmp_path, bad):
    """A file forged with checksums that hold still goes through the constructor."""
    v = SteeringVector({12: torch.ones(8)})
    v = replace(v, _directions=(torch.tensor([bad] * 8),))
    for suffix in SUFFIXES:
        for path, data in FORMATS[suffix].encode(v, tmp_path / f"v{suffix}").items():
            path.write_bytes(data)
        refused(path, "8 entries that are NaN or infinite")


@pytest.mark.parametrize(
    "name",
    ["../v.pt", "/etc/passwd", "sub/v.pt", "..\\v.pt", "C:v.pt", "..", ".", "", "v.json", "v\0.pt", "/v.pt", "./v.pt"],
)
def test_tensor_file_outside_the_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = save(vector(), tmp_path / "in" / "v.json")
    (tmp_path / "v.pt").write_bytes(tensor_file(path).read_bytes())
    document = json.loads(path.read_text())
    path.write_text(json.dumps(reseal(document, tensors={**document["tensors"], "file": name})))
    refused(path, "name a .pt file in the same folder, without a path")


@pytest.mark.parametrize("tensors", [None, [], {}, {"file": 3, "sha256": ""}, {"file": "v.pt"}])
def test_tensor_entry_of_another_shape(tmp_path, tensors):
    path = save(vector(), tmp_path / "v.json")
    path.write_text(json.dumps(reseal(json.loads(path.read_text()), tensors=tensors)))
    refused(path, "the entry 'tensors' of its document")


def test_missing_tensor_file(tmp_path):
    path = save(vector(), tmp_path / "v.json")
    tensor_file(path).unlink()
    refused(path, f"its tensor file '{tensor_file(path).name}' is not beside it; keep the two files together")


class Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def test_hostile_pickles_run_nothing(tmp_path):
    """pitfall 21: a shared vector cannot run code, in any wrapping that torch.load would open."""
    path, sentinel = tmp_path / "v.json", tmp_path / "ran"
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"resid_post[12]": Bomb(sentinel)}, zipped)
    torch.save({"resid_post[12]": Bomb(sentinel)}, legacy, _use_new_zipfile_serialization=False)
    wrappings = (zipped.getvalue(), legacy.getvalue(), pickle.dumps(Bomb(sentinel)))
    for data, told in zip(wrappings, ("asks Python for", "not an archive that", "not an archive that"), strict=True):
        save(vector(), path)
        forge_pt(path, data)
        refused(path, told)
        (tmp_path / "other.safetensors").write_bytes(data)
        refused(tmp_path / "other.safetensors", "Cannot load")
    assert not sentinel.exists()
    torch.load(io.BytesIO(zipped.getvalue()), weights_only=False)  # the bomb is live
    assert sentinel.exists()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def members_of(v: SteeringVector) -> dict[str, bytes]:
    return _json_pt._members(_json_pt.encode_tensors(_document.tensors_of(v)))


def test_zip_bombs(tmp_path):
    path = save(vector(), tmp_path / "v.json")
    forge_pt(path, archive({"data.pkl": bytes(200 * 2**20)}, zipfile.ZIP_DEFLATED))
    refused(path, "its tensor file is compressed")
    data = bytearray(archive({"data.pkl": bytes(100), "x": bytes(100)}))
    # every entry of the directory points at the first one, with a size to match
    start = data.index(b"PK\x01\x02")
    entry = bytes(data[start : data.index(b"PK\x01\x02", start + 4)])
    entries = b"".join(entry[:46] + f"archive/d{i:07}".encode() for i in range(2000))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2000, 2000, len(entries), start, 0)
    forge_pt(path, bytes(data[:start]) + entries + end)
    refused(path, "its tensor file")
    forge_pt(path, bytes(data[:start]) + b"PK\x01\x02" * 60_000)
    refused(path, "not an archive that torch.save wrote")


def test_tensors_that_claim_more_than_they_hold(tmp_path):
    """torch.load(weights_only=True) itself rebuilds a view of 2**31 numbers, and makes any bytearray."""
    v = SteeringVector({12: torch.ones(8)})
    path, members = save(v, tmp_path / "v.json"), members_of(v)
    assert members["data.pkl"].count(b"K\x08") == 2  # numel of the storage, and size of the tensor
    code = members["data.pkl"]
    for changed, told in (
        (
            code.replace(b"K\x08", b"J\xff\xff\xff\x7f"),
            "claims 2147483647 numbers for the bytes '0' and holds 32 bytes",
        ),
        (code.replace(b"K\x08\x85", b"J\xff\xff\xff\x7f\x85"), "a view of something larger"),
        (code.replace(b"K\x01\x85", b"K\x00\x85"), "a view of something larger"),
        (code.replace(b"FloatStorage", b"DoubleStorage"), "claims 8 numbers"),
        (code.replace(b"FloatStorage", b"IntStorage"), "holds numbers of torch IntStorage"),
        (code.replace(b"cpu", b"lol"), "describes its bytes as"),
        (code.replace(b"\x89", b"\x88"), "not plain and 1-D"),
        (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "asks Python for 'builtins bytearray'"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "its list of sites and its tensors differ"),
        (b"\x80\x02.", "something other than tensors by name"),
        (b"\x80\x02)R.", "malformed pickle"),
        (b"\x80\x02t.", "malformed pickle"),
        (b"\x80\x02h\x05.", "malformed pickle"),
        (b"\x80\x02]].", "something other than tensors by name"),
        (b"\x80\x02(d.", "the pickle instruction DICT"),
        (b"", "a pickle of 0 bytes"),
    ):
        forge_pt(path, archive(members | {"data.pkl": changed}))
        refused(path, told)
    forge_pt(path, archive(members | {"data/0": bytes(28)}))
    refused(path, "claims 8 numbers")
    forge_pt(path, archive(members | {"byteorder": b"middle"}))
    refused(path, "has the byteorder b'middle'")
    forge_pt(path, archive(members | {"constants.pkl": b"\x80\x02N."}))  # what TorchScript archives have
    assert load(path).identical(v)


def test_two_tensors_on_the_same_bytes(tmp_path):
    path = save(vector(), tmp_path / "v.json")
    shared, buffer = torch.ones(8), io.BytesIO()
    torch.save({"resid_post[1]": shared, "resid_post[2]": shared}, buffer)
    forge_pt(path, buffer.getvalue())
    refused(path, "uses the same bytes for two tensors")


@pytest.mark.parametrize("bad", [torch.ones(2, 4), torch.ones(1).expand(10**9), torch.ones(8)[2:], torch.ones(8).int()])
def test_other_tensors_in_the_archive(tmp_path, bad):
    path, buffer = save(vector(), tmp_path / "v.json"), io.BytesIO()
    torch.save({"resid_post[1]": bad}, buffer)
    forge_pt(path, buffer.getvalue())
    refused(path, "its tensor file")


def test_unreadable_file(tmp_path, monkeypatch):
    path = save(vector(), tmp_path / "v.json")

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(_json_pt, "verify", fail)
    refused(path, "it is damaged (MemoryError: )")


def test_a_file_that_is_too_large(tmp_path):
    path = tmp_path / "v.safetensors"
    with open(path, "wb") as file:
        file.truncate(2**40)  # sparse: takes no space
    refused(path, "it has 1099511627776 bytes, more than the limit of 268435456 bytes")


# -- the model -------------------------------------------------------------------------------------


class Config:
    def __init__(self, **sizes: object) -> None:
        self.__dict__.update(sizes)


def test_load_checks_the_model(tmp_path):
    model = Config(config=Config(hidden_size=6, num_hidden_layers=20))
    path = save(vector(), tmp_path / "v.safetensors")
    with pytest.raises(ModelError, match="The vector has width 8, but 'Config' .* has width 6"):
        load(path, model=model)
    model.config.hidden_size = 8
    assert load(path, model=model).identical(vector())
    with pytest.raises(ModelError, match="does not say which model it was made from, so strict=True cannot tell"):
        load(path, model=model, strict=True)


# -- memory ----------------------------------------------------------------------------------------

STUFFED = {
    "lists": "[" + "[]," * 60_000 + "[]]",
    "objects": "[" + "{}," * 60_000 + "{}]",
    "keys": "{" + ",".join(f'"{i}":{{}}' for i in range(30_000)) + "}",
    "deep": "[" * 200_000,
    "text": '"' + "\\u1234" * 40_000 + '"',
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("what", STUFFED)
def test_memory_is_a_multiple_of_the_files_size(tmp_path, suffix, what):
    path = tmp_path / f"v{suffix}"
    for text in (STUFFED[what], f'{{"format": "steerfn", "version": 1, "metadata": {{"a": {STUFFED[what]}}}}}'):
        if suffix == ".json":
            path.write_text(text)
        else:
            forge_safetensors(path, text.encode() if text[0] != "{" else {"__metadata__": {"steerfn": text}})
        tracemalloc.start()
        try:
            refused(path, "Cannot load")
            assert tracemalloc.get_traced_memory()[1] < 64 * path.stat().st_size
        finally:
            tracemalloc.stop()


HELD = """
import resource, sys, torch, steerfn as sf
torch.set_num_threads(1)
sf.load(sys.argv[2])  # what is imported and allocated once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vector = sf.load(sys.argv[1]) if sys.argv[1][-3:] != ".pt" else sf.files.from_pt(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="what ru_maxrss counts")
@pytest.mark.parametrize("name", ["v.safetensors", "v.json", "v.gguf", "rows.pt"])
def test_a_large_vector_takes_a_few_times_its_size(tmp_path, name):
    if name == "v.gguf":
        pytest.importorskip("gguf")
    size, large, small = 2**25, tmp_path / name, tmp_path / f"small{Path(name).suffix}"
    directions = torch.ones(64, size // 256)
    if name == "rows.pt":
        torch.save(directions, large)
        small = save(vector(), tmp_path / "small.json")
    else:
        save(SteeringVector(dict(enumerate(directions, 1))), large)
        save(SteeringVector({1: torch.ones(8)}), small)
    done = subprocess.run([sys.executable, "-c", HELD, large, small], capture_output=True, text=True, check=True)
    assert 1024 * int(done.stdout) < 8 * size
