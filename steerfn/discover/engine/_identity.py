"""What determines the outcome of a run, in words and hashes: runs may only be continued or merged with their like."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn import _forward
from steerfn._blocks import unwrapped
from steerfn._fingerprint import fingerprint
from steerfn._io_document import brief, version_of
from steerfn._layout import layout
from steerfn._substitute import substitutions_of
from steerfn.discover.engine._collect import Job

SCALARS = {int, float, bool, str, bytes, type(None)}


def identity(job: Job, model: Any) -> dict[str, str]:
    """What determines the vector of a job, by what it is called in messages.

    Weights are told apart as `weights_hash` does, and by their dtype. The device is left out, so that a run may be
    continued on another.
    """
    planned, root = job.planned, unwrapped(model)
    steering = [entry.operator for entry in _forward.entries_of(substitutions_of(root, layout(root)).host)]
    about = fingerprint(root, weights=True)
    weights = [about["fingerprint"], about["weights"], str(getattr(root, "dtype", None))]
    named = {"sites", "reads", "budget", "limit", "sinks"}  # what sinks there are shows in what is read
    layout_of_rows = [getattr(planned, f.name) for f in dataclasses.fields(planned) if f.name not in named]
    return {
        "model": f"{about['architecture']} {digest(weights)}",
        "steering": digest(steering) if steering else "none",
        "sites": ", ".join(map(str, planned.sites)),
        "method": f"{job.method.name} {digest(job.method)}",
        "texts": f"{job.positive} of {len(planned.reads)} positive, {digest(list(planned.reads))}",
        "batch size": f"{planned.limit} texts" if planned.limit else f"auto, {planned.budget} tokens",
        "rows": f"{len(planned.rows)}, {digest(layout_of_rows)}",
        "steerfn": version_of("steerfn"),
    }


def differences(there: Mapping[str, Any], here: Mapping[str, str]) -> str:
    """What differs between two identities, in words."""
    return ", ".join(
        f"{name} ({brief(there.get(name, 'unknown'), 60)} there, {brief(here[name], 60)} here)"
        for name in here
        if there.get(name) != here[name]
    )


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a value: structs by their fields, functions by their names."""
    found = hashlib.sha256()
    for piece in _pieces(value):
        found.update(piece)
    return found.hexdigest()[:16]


def _pieces(value: Any) -> Iterable[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif isinstance(value, (tuple, list)):
        if set(map(type, value)) <= SCALARS:  # token ids: millions of them
            yield repr(value).encode()
            return
        yield f"[{len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, Mapping):
        yield from _pieces([part for item in value.items() for part in item])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield _named(type(value))
        yield from _pieces([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif type(value) in SCALARS:
        yield repr(value).encode()
    else:  # not repr: it may hold an address, which is another in every process
        yield _named(value if callable(value) and hasattr(value, "__qualname__") else type(value))


def _named(thing: Any) -> bytes:
    return f"<{thing.__module__}.{thing.__qualname__}>".encode()
