"""What a steering is, told in hashes: caches, traces and logs tell two steerings apart by it."""

import dataclasses
import hashlib
import secrets
import weakref
from collections.abc import Iterator
from typing import Any

from steerfn._about import operators_sha256
from steerfn._io_document import compose, tensors_of
from steerfn.operators import Operator
from steerfn.operators._linear import Add


def steering_identity(op: Operator | None) -> dict[str, Any] | None:
    """What a steering is, as JSON values: the hashes of its vectors (as in their files), its alpha, a hash of it all.

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
        whole.update(_named(function).encode())
    told = {
        "operator": type(op).__name__,
        "sha256": whole.hexdigest(),
        "vectors_sha256": [compose(v, tensors_of(v))["sha256"] for v in op.vectors],
    }
    return told | {"alpha": op.alpha.tolist()} if isinstance(op, Add) else told


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


def _named(function: Any) -> str:
    """A random name of a function, its own as long as it lives: an address is used again, here and elsewhere."""
    try:
        return _names.setdefault(function, secrets.token_hex(16))
    except TypeError:  # no weak references to it: another name every time, so that nothing is ever taken for it
        return secrets.token_hex(16)
