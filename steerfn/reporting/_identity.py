"""Which vector, which model, which data: names, sizes and hashes, so that a signature is under one thing only."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerfn._blocks import unwrapped
from steerfn._errors import FileError
from steerfn._fingerprint import fingerprint
from steerfn._io import describe, load
from steerfn._io_document import MAX_BYTES, Refused, compose, tensors_of
from steerfn._io_read import read_bytes
from steerfn._layout import layout
from steerfn._vector import SteeringVector
from steerfn.datasets import ContrastSet
from steerfn.operators._base import as_vector

MATCHES = {
    "same": "The vector says that it was made from a model of this architecture.",
    "other": "The vector says that it was made from a model of another architecture.",
    "unknown": "The vector does not say from which model it was made.",
}


def vector_of(v: Any) -> tuple[SteeringVector, dict[str, Any]]:
    """A vector, and what is known of the file that it came from, if it did.

    Returns:
        The vector, and `file` (its name, without where it lies), `file_sha256` and `versions` (that wrote it), each
        None for a vector that is no file.

    Raises:
        FileError: a file that `load` refuses.
        SteerError: neither a vector nor a path.
    """
    if not isinstance(v, (str, os.PathLike)):
        return as_vector(v, "report"), {"file": None, "file_sha256": None, "versions": None}
    vector, path = load(v), Path(v)
    try:
        found = hashlib.sha256(read_bytes(path, MAX_BYTES)).hexdigest()
    except (OSError, Refused) as error:  # it was there a moment ago
        raise FileError(f"Cannot read '{path}' again: {error}; leave it in place.") from None
    return vector, {"file": path.name, "file_sha256": found, "versions": describe(path)["versions"]}


def identified(vector: SteeringVector, model: Any) -> dict[str, Any]:
    """What a vector is, with its layers counted from 0, and whether it is of the model at hand.

    The hash is that of the vector as it was given, which its file carries.
    """
    whole = vector.resolve(layout(unwrapped(model)).n_layers)
    made = vector.metadata.get("model")
    theirs = made.get("fingerprint") if isinstance(made, Mapping) else None
    here = fingerprint(unwrapped(model))["fingerprint"]
    match = "unknown" if theirs is None else "same" if theirs == here else "other"
    return {
        "sites": [site.name for site in whole.sites],
        "norms": {site.name: norm for site, norm in whole.magnitude.items()},
        "widths": {site.name: len(d) for site, d in zip(whole.sites, whole.directions, strict=True)},
        "dtype": str(vector.dtype).removeprefix("torch."),
        "sha256": compose(vector, tensors_of(vector))["sha256"],
        "match": match,
    }


def model_of(model: Any) -> dict[str, Any]:
    """What a model is: its fingerprint, and 16 hex digits of the hash of a few elements of every weight.

    The fingerprint knows sizes only; a fine-tune differs in all that it trained, and so in these samples.
    """
    root = unwrapped(model)
    first = next(iter(root.parameters()), None)
    return {
        **fingerprint(root),
        "weights_sample": fingerprint(root, weights=True)["weights"],
        "dtype": None if first is None else str(first.dtype).removeprefix("torch."),
        "device": None if first is None else first.device.type,
    }


def data_of(data: ContrastSet) -> dict[str, Any]:
    """What a contrast set is: counts, origin, and a hash of its texts."""
    return {
        "name": data.name,
        "source": data.source,
        "description": data.description,
        "positive": len(data.positive),
        "negative": len(data.negative),
        "paired": data.paired,
        "sha256": texts_sha256([*data.positive, "|", *data.negative]),
    }


def texts_sha256(texts: Any) -> str:
    """The SHA-256 of some texts or conversations, as the UTF-8 of their JSON list."""
    text = json.dumps([each if isinstance(each, str) else list(map(dict, each)) for each in texts])
    return hashlib.sha256(text.encode()).hexdigest()
