"""`.json` with a `.pt` beside it: a document to read, and its tensors.

The JSON names the tensor file by its basename and SHA-256, and that is all it can say of where the
tensors are: a path would let a shared file point anywhere on the reader's disk.
"""

import hashlib
import json
from pathlib import Path, PureWindowsPath
from typing import Any

from steerfn import _io_pt
from steerfn._io_document import (
    MAX_BYTES,
    MAX_DOCUMENT,
    Read,
    Refused,
    assemble,
    brief,
    compose,
    parse_json,
    tensors_of,
    verify,
)
from steerfn._vector import SteeringVector


def encode(vector: SteeringVector, path: Path) -> dict[Path, bytes]:
    """The two files of a vector, the tensors first: a document never describes what is not there."""
    tensors = tensors_of(vector)
    beside = path.with_suffix(".pt")
    data = _io_pt.encode(tensors)
    document = compose(vector, tensors, tensors={"file": beside.name, "sha256": hashlib.sha256(data).hexdigest()})
    return {beside: data, path: (json.dumps(document, indent=2) + "\n").encode()}


def decode(path: Path, read: Read) -> tuple[SteeringVector, dict[str, Any]]:
    """The vector and the document in a pair of files."""
    document = verify(parse_json(read(path, MAX_DOCUMENT)))
    match document.get("tensors"):
        case {"file": str(name), "sha256": str(digest)}:
            pass
        case _:
            raise Refused("the entry 'tensors' of its document is missing or of the wrong type")
    # As Windows reads a name: the separators of both systems and drive letters count.
    if PureWindowsPath(name).name != name or not name.endswith(".pt") or "\0" in name:
        raise Refused(
            f"it names {brief(name)!r} as its tensor file", "name a .pt file in the same folder, without a path"
        )
    try:
        data = read(path.with_name(name), MAX_BYTES)
    except FileNotFoundError:
        raise Refused(f"its tensor file {brief(name)!r} is not beside it", "keep the two files together") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise Refused(f"its tensor file {brief(name)!r} was changed or replaced (the SHA-256 does not match)")
    return assemble(document, _io_pt.decode(data)), document
