"""load(save(x)) is x, bit for bit, for any vector."""

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import torch
from hypothesis import given

from steerfn.values._site import KINDS, Site
from steerfn.values._vector import SteeringVector
from steerfn.values.files._save_load import describe, load, save

DTYPES = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def sites(draw) -> Site:
    kind = draw(st.sampled_from(KINDS))
    layer = draw(st.integers(-200, 200))
    return Site(kind, layer, draw(st.integers(0, 200)) if kind == "head_out" else None)


@st.composite
def vectors(draw) -> SteeringVector:
    """Any sites, and any finite bit patterns: subnormal, -0.0 and the largest included."""
    widths = {True: draw(st.integers(1, 9)), False: draw(st.integers(1, 40))}
    directions = {}
    for site in draw(st.lists(sites(), min_size=1, max_size=5, unique=True)):
        dtype, integer = draw(st.sampled_from(list(DTYPES.items())))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        info = torch.iinfo(integer)
        bits = torch.randint(info.min, info.max, (widths[site.kind == "head_out"],), generator=generator, dtype=integer)
        values = bits.view(dtype)
        directions[site] = torch.where(torch.isfinite(values), values, torch.full_like(values, -0.0))
    return SteeringVector(directions, draw(st.dictionaries(st.text(), JSON, max_size=4)))


@given(
    vector=vectors(), suffix=st.sampled_from([".safetensors", ".json"]), stem=st.sampled_from(["v", "llama-3.1", "é.x"])
)
def test_load_of_save_is_identical(vector, suffix, stem):
    with tempfile.TemporaryDirectory() as folder:
        path = save(vector, Path(folder) / f"{stem}{suffix}")
        back = load(path)
        assert back.identical(vector) and vector.identical(back)
        assert back.sites == vector.sites
        assert [d.dtype for d in back.directions] == [d.dtype for d in vector.directions]
        assert describe(path)["metadata"] == vector.metadata


@given(vector=vectors())
def test_formats_agree(vector):
    with tempfile.TemporaryDirectory() as folder:
        first, second = (save(vector, Path(folder) / f"v{s}") for s in (".safetensors", ".json"))
        assert load(first).identical(load(second))
        assert describe(first)["sha256"] == describe(second)["sha256"]
