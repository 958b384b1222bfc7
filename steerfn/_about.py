"""What was run, to the bit: the record that a result carries, so that someone else can run it again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn._fingerprint import fingerprint
from steerfn._io_document import version_of
from steerfn.operators import Operator

VERSIONS = ("steerfn", "torch", "transformers")
"""The packages whose versions a result names."""


def about_of(model: Any, ops: Sequence[Operator | None], options: Mapping[str, Any]) -> dict[str, Any]:
    """What determines a result, as JSON values.

    Args:
        model: the model.
        ops: the operators that were run, None for the unsteered model.
        options: whatever else matters; what JSON does not know is written as its `str`.

    Returns:
        `model` (see `fingerprint`), `versions`, `operators_sha256` (of every number and the structure of `ops`), and
        the options.
    """
    return {
        "model": fingerprint(model),
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
