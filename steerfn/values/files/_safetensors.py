"""`.safetensors`: tensors named by site, the document in the header.

    8 bytes  length n of the header, little-endian
    n bytes  JSON: {"__metadata__": {"steerfn": document}, "resid_post[12]": {dtype, shape, data_offsets}, ...}
    the rest the tensors' bytes, without gaps

The header is checked here before the safetensors library sees the file, so that every refusal has a
sentence and nothing is allocated for what a header only claims.
"""

import json
import struct
from pathlib import Path
from typing import Any

import safetensors.torch

from steerfn.values._vector import SteeringVector
from steerfn.values.files._document import (
    MAX_BYTES,
    MAX_DOCUMENT,
    MAX_TENSORS,
    Read,
    Refused,
    assemble,
    brief,
    compose,
    parse_json,
    tensors_of,
    verify,
)

KEY = "steerfn"

_ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def encode(vector: SteeringVector, path: Path) -> dict[Path, bytes]:
    """The one file of a vector."""
    tensors = tensors_of(vector)
    document = json.dumps(compose(vector, tensors))
    return {path: safetensors.torch.save(tensors, metadata={KEY: document})}


def decode(path: Path, read: Read) -> tuple[SteeringVector, dict[str, Any]]:
    """The vector and the document in a file."""
    data = read(path, MAX_BYTES)
    document = verify(_document(data))
    return assemble(document, safetensors.torch.load(data)), document


def _document(data: bytes) -> Any:
    """The document of a file whose header describes exactly the bytes that follow it."""
    if len(data) < 8:
        raise Refused(f"it has {len(data)} bytes, too few for a safetensors file")
    (length,) = struct.unpack("<Q", data[:8])
    if length > MAX_DOCUMENT or length > len(data) - 8:
        raise Refused(
            f"it claims a header of {length} bytes and has {len(data)} in all (a header may have {MAX_DOCUMENT})"
        )
    header = parse_json(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise Refused("its safetensors header is not a JSON object")
    notes = header.pop("__metadata__", None)
    if not isinstance(notes, dict) or not isinstance(notes.get(KEY), str):
        raise Refused(
            "it was not saved by steerfn (its header has no 'steerfn' entry)",
            "build the vector from its tensors: "
            "SteeringVector({sf.resid_post[12]: safetensors.torch.load_file(path)[name]})",
        )
    if len(header) > MAX_TENSORS:
        raise Refused(f"it holds {len(header)} tensors, more than {MAX_TENSORS}")
    end = 0
    for begin, stop in sorted(_extent(name, entry) for name, entry in header.items()):
        if begin != end:
            raise Refused(f"its tensors overlap or leave a gap at byte {end}")
        end = stop
    if end != len(data) - 8 - length:
        raise Refused(f"its header describes {end} bytes of tensors and {len(data) - 8 - length} follow")
    return parse_json(notes[KEY].encode("utf-8", "surrogatepass"))


def _extent(name: str, entry: Any) -> tuple[int, int]:
    """Where the bytes of one tensor are, once its dtype and shape account for them."""
    match entry:
        case {"dtype": str(dtype), "shape": [int(width)], "data_offsets": [int(begin), int(end)]} if len(entry) == 3:
            if dtype in _ITEMSIZE and 0 < width and 0 <= begin and end - begin == width * _ITEMSIZE[dtype]:
                return begin, end
    shown = f"its header describes {brief(name)!r} as {brief(entry, 150)}"
    raise Refused(f"{shown}, which is not a 1-D floating-point tensor")
