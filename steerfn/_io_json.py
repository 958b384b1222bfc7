"""`.json` with a `.pt` beside it: a document to read, and its tensors.

The JSON names the tensor file by its basename and SHA-256, and that is all it can say of where the
tensors are: a path would let a shared file point anywhere on the reader's disk.

The name of the tensor file holds a part of its hash, so that several writers of one vector never write
the same file with different bytes: the last JSON to be put in place has its own tensors beside it. What
earlier JSONs named goes when it is older than `YOUNG`, since a writer may be about to name a younger one.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection
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
from steerfn._io_write import remove_old
from steerfn._vector import SteeringVector

YOUNG = 60.0
"""Seconds in which a writer has long named the tensor file that it wrote."""
ATTEMPTS = 20
"""Times that a pair is read while others write it."""


def encode(vector: SteeringVector, path: Path) -> dict[Path, bytes]:
    """The two files of a vector, the tensors first: a document never describes what is not there."""
    tensors = tensors_of(vector)
    data = _io_pt.encode(tensors)
    digest = hashlib.sha256(data).hexdigest()
    beside = path.with_name(f"{path.stem}.{digest[:16]}.pt")
    document = compose(vector, tensors, tensors={"file": beside.name, "sha256": digest})
    return {beside: data, path: (json.dumps(document, indent=2) + "\n").encode()}


def remove_former(path: Path, written: Collection[Path]) -> None:
    """Remove the tensor files of what was saved under this name before."""
    ours = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{16}\.pt")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            former = path.with_name(entry.name)
            if ours.fullmatch(entry.name) and former not in written:
                remove_old(former, YOUNG)


def decode(path: Path, read: Read) -> tuple[SteeringVector, dict[str, Any]]:
    """The vector and the document in a pair of files."""
    for _ in range(ATTEMPTS):
        text = read(path, MAX_DOCUMENT)
        try:
            return _pair(path, text, read)
        except Refused:
            if read(path, MAX_DOCUMENT) == text:  # else a writer put another document in place meanwhile
                raise
    raise Refused("it was replaced while it was read, again and again", "try again when nothing writes it")


def _pair(path: Path, text: bytes, read: Read) -> tuple[SteeringVector, dict[str, Any]]:
    document = verify(parse_json(text))
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
