"""Provenance: the record of a run that a result carries, complete enough to run it again to the bit.

Models, vectors and steerings are told apart by hashes, in records, caches, traces and logs.
"""

import dataclasses
import hashlib
import json
import secrets
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn.model._blocks import unwrap_model
from steerfn.model._layout import layout
from steerfn.operators import Add, Operator
from steerfn.values import ModelIdentity, SteeringVector
from steerfn.values.files import vector_sha256, version_of

VERSIONS = ("steerfn", "torch", "transformers")
"""The packages whose versions a result names."""


def run_provenance(model: Any, ops: Sequence[Operator | None], options: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a run as JSON values: everything that determines its result.

    Args:
        model: the model, or its `ModelIdentity`.
        ops: the operators that were run, None for the unsteered model.
        options: whatever else matters; what JSON does not know is written as its `str`.

    Returns:
        `model` (see `fingerprint`), `versions`, `operators_sha256` (of every number and the structure of `ops`), and
        the options.
    """
    return {
        "model": ModelIdentity.of(model).sizes,
        "versions": {name: version_of(name) for name in VERSIONS},
        "operators_sha256": operators_sha256(ops),
        **json.loads(json.dumps(dict(options), default=str)),
    }


def operators_sha256(ops: Sequence[Operator | None]) -> str:
    """A hash of operators: of their structure, sites and scopes, and of every number in them."""
    digest = hashlib.sha256()
    for op in ops:
        leaves, structure = pytree.tree_flatten(op)
        digest.update(str(structure).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                digest.update(leaf.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def vector_identity(vector: SteeringVector) -> dict[str, Any]:
    """Which vector it was: the hash that its file would carry, and what it says of itself."""
    return {
        "sha256": vector_sha256(vector),
        "sites": [site.name for site in vector.sites],
        "method": vector.metadata.get("method"),
    }


def steering_identity(op: Operator | None) -> dict[str, Any] | None:
    """The identity of a steering as JSON values: its vectors' hashes (as in their files), its alpha, a hash of it all.

    Returns:
        `operator` (its name), `sha256` (of its structure and every number in it), `vectors_sha256`, and `alpha` where
        it is a plain addition; None for no steering.

    Example:
        >>> import torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[0]: torch.ones(2)})
        >>> told = steering_identity(sf.add(v, 2.0))
        >>> told["operator"], told["alpha"], told == steering_identity(sf.add(v, 2.5))
        ('Add', 2.0, False)
    """
    if op is None:
        return None
    whole = hashlib.sha256(operators_sha256([op]).encode())
    for function in _functions(op):
        whole.update(_function_name(function).encode())
    description = {
        "operator": type(op).__name__,
        "sha256": whole.hexdigest(),
        "vectors_sha256": [vector_sha256(v) for v in op.vectors],
    }
    return description | {"alpha": op.alpha.tolist()} if isinstance(op, Add) else description


def _functions(part: Any) -> Iterator[Any]:
    """The functions that an operator holds, of a schedule, say: no hash says what they do."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        for field in dataclasses.fields(part):
            yield from _functions(getattr(part, field.name))
    elif isinstance(part, (tuple, list)):
        for each in part:
            yield from _functions(each)
    elif callable(part) and not isinstance(part, type):
        yield part


_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _function_name(function: Any) -> str:
    """A random name of a function, its own as long as it lives: an address is used again, here and elsewhere."""
    try:
        return _names.setdefault(function, secrets.token_hex(16))
    except TypeError:  # no weak references to it: another name every time, so that nothing is ever taken for it
        return secrets.token_hex(16)


SCALARS = {int, float, bool, str, bytes, type(None)}


def digest(value: Any) -> str:
    """The first 16 hex digits of `value_sha256`."""
    return value_sha256(value)[:16]


def value_sha256(value: Any) -> str:
    """The SHA-256 of a value, tensors and all: structs by their fields, functions by their names."""
    sha256 = hashlib.sha256()
    for piece in _pieces(value):
        sha256.update(piece)
    return sha256.hexdigest()


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
        yield _qualified_name(type(value))
        yield from _pieces([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif type(value) in SCALARS:
        yield repr(value).encode()
    else:  # not repr: it may hold an address, which is another in every process
        yield _qualified_name(value if callable(value) and hasattr(value, "__qualname__") else type(value))


def _qualified_name(thing: Any) -> bytes:
    return f"<{thing.__module__}.{thing.__qualname__}>".encode()


def describe_vector(vector: SteeringVector, model: Any) -> dict[str, Any]:
    """Describe a vector, with its layers counted from 0, and whether it was made from the weights at hand.

    The hash is that of the vector as it was given, which its file carries.
    """
    identity = ModelIdentity.of(model)
    whole = vector.resolve(layout(unwrap_model(identity.model)).n_layers)
    origin = vector.metadata.get("model")
    origin = origin if isinstance(origin, Mapping) else {}
    return {
        "sites": [site.name for site in whole.sites],
        "norms": {site.name: norm for site, norm in whole.magnitude.items()},
        "widths": {site.name: len(d) for site, d in zip(whole.sites, whole.directions, strict=True)},
        "dtype": str(vector.dtype).removeprefix("torch."),
        "sha256": vector_sha256(vector),
        "match": _match(origin, identity),
        "weights": origin.get("weights"),
    }


def _match(origin: Mapping[str, Any], here: ModelIdentity) -> str:
    """How far the model that a vector says it was made from is the one at hand, in a word or two."""
    if origin.get("fingerprint") is None:
        return "unknown"
    if origin["fingerprint"] != here.sizes["fingerprint"]:
        return "other"
    if origin.get("weights") is None or here.weights is None:
        return "architecture"
    return "same" if origin["weights"] == here.weights else "other weights"


def model_of(model: Any) -> dict[str, Any]:
    """Identify a model: its fingerprint, and 16 hex digits of the hash of a few elements of every weight.

    The fingerprint knows sizes only; a fine-tune differs in all that it trained, and so in these samples.
    """
    identity = ModelIdentity.of(model)
    first = next(iter(identity.model.parameters()), None)
    return {
        **identity.sizes,
        "weights_sample": identity.weights,
        "dtype": None if first is None else str(first.dtype).removeprefix("torch."),
        "device": None if first is None else first.device.type,
    }
