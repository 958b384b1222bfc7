"""Other engines: the same vector in llama.cpp, lm-evaluation-harness, and the files of other libraries.

Each engine loads at first use, and needs its own extra where it needs one. See `docs/engines.md`.
"""

from pathlib import Path
from typing import Any

from steerfn._io import FORMATS, Format
from steerfn._io_document import Read
from steerfn._vector import SteeringVector


def _encode(vector: SteeringVector, path: Path) -> dict[Path, bytes]:
    from steerfn.engines._gguf import encode

    return encode(vector, path)


def _decode(path: Path, read: Read) -> tuple[SteeringVector, dict[str, Any]]:
    from steerfn.engines._gguf import decode

    return decode(path, read)


FORMATS[".gguf"] = Format(_encode, _decode, exact=False)
