"""Vectors of other libraries: repeng, steering-vectors, and the `.pt` files of CAA and RepE."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerfn.values._arguments import public
from steerfn.values._errors import DataError, FileError
from steerfn.values._site import Site, Sites, as_sites, attn_out, mlp_out, resid_post
from steerfn.values._vector import SteeringVector
from steerfn.values.files._document import MAX_BYTES, MAX_TENSORS, SAVE_AGAIN, Refused, brief
from steerfn.values.files._json_pt import decode_any
from steerfn.values.files._read import read_bytes

KINDS = {"decoder_block": resid_post, "self_attn": attn_out, "mlp": mlp_out}
"""The layer types of steering-vectors; its norms are not sites."""


@public
def from_repeng(vector: Any) -> SteeringVector:
    """A repeng `ControlVector` as a `SteeringVector`.

    repeng adds the direction of layer `n` to the output of block `n`, so it becomes `resid_post[n]`.

    Args:
        vector: `repeng.ControlVector`, or anything with `directions` by layer.

    Raises:
        DataError: something else, or without directions.

    Source: vgel/repeng, `ControlModel.set_control`.

    Example:
        >>> import numpy as np, types, steerfn as sf
        >>> theirs = types.SimpleNamespace(model_type="llama", directions={12: np.ones(8, np.float32)})
        >>> sf.from_repeng(theirs).sites
        (resid_post[12],)
    """
    directions = _by_layer(getattr(vector, "directions", vector), "from_repeng takes a repeng ControlVector")
    metadata = {"imported": {"from": "repeng", "model_type": str(getattr(vector, "model_type", ""))}}
    return SteeringVector({resid_post[layer]: direction for layer, direction in directions.items()}, metadata)


@public
def from_steering_vectors(vector: Any) -> SteeringVector:
    """A vector of the package `steering-vectors` as a `SteeringVector` of this library.

    Args:
        vector: `steering_vectors.SteeringVector`: `layer_activations` by layer and a `layer_type`, of which
            decoder_block is `resid_post`, self_attn `attn_out` and mlp `mlp_out`.

    Raises:
        DataError: something else, without directions, or of a layer type that is not a site (the norms).

    Source: steering-vectors 0.12.2.

    Example:
        >>> import torch, types, steerfn as sf
        >>> theirs = types.SimpleNamespace(layer_type="mlp", layer_activations={3: torch.ones(8)})
        >>> sf.from_steering_vectors(theirs).sites
        (mlp_out[3],)
    """
    directions = _by_layer(
        getattr(vector, "layer_activations", vector), "from_steering_vectors takes a steering_vectors.SteeringVector"
    )
    kind = getattr(vector, "layer_type", "decoder_block")
    if kind not in KINDS:
        raise DataError(
            f"The layer type {brief(kind)!r} is not a site of the residual stream; train it with layer_type "
            f"{' or '.join(map(repr, KINDS))}."
        )
    return SteeringVector(
        {KINDS[kind][layer]: direction for layer, direction in directions.items()},
        {"imported": {"from": "steering-vectors", "layer_type": kind}},
    )


@public
def from_pt(path: str | os.PathLike[str], layer: Sites | None = None) -> SteeringVector:
    """A vector from a `.pt` file as CAA and RepE keep them; nothing in the file is executed.

    Args:
        path: a file that `torch.save` wrote, of 256 MiB at most: one direction `[d_model]`, one for each of several
            layers (`[layers, d_model]`, or a list), or a mapping of layers (ints, or names that end in one) to
            directions. It may come from anyone, and takes memory of some times its size, whatever it claims.
        layer: the site of a single direction, or of each row, in order; an int means `resid_post`. A name such as
            CAA's `vec_layer_13_...pt` says it by itself.

    Raises:
        FileError: no such file, or one that holds anything but tensors in plain containers.
        DataError: tensors of another shape, or a layer that is neither given nor named.

    Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition" (its vectors); Zou et al. 2023,
    "Representation Engineering" (directions by layer).

    Example:
        >>> import tempfile, torch, steerfn as sf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(torch.ones(8), f"{folder}/vec_layer_13_llama.pt")
        ...     sf.files.from_pt(f"{folder}/vec_layer_13_llama.pt").sites
        (resid_post[13],)
    """
    name, content = _read(path)
    metadata = {"imported": {"from": "pt", "file": name}}
    if isinstance(content, (list, tuple)):
        content = dict(enumerate(content)) if layer is None else list(content)
    if isinstance(content, Tensor) and content.ndim == 2 and len(content) > MAX_TENSORS:
        raise DataError(
            f"'{brief(name)}' holds {len(content)} directions, more than {MAX_TENSORS}; save a part of them."
        )
    if isinstance(content, Tensor) and content.ndim == 2:
        content = dict(enumerate(content.unbind())) if layer is None else list(content.unbind())
    if isinstance(content, Tensor) and layer is None:
        named = re.search(r"layer[_-]?(\d{1,5})", name)
        if named is None:
            raise DataError(f"'{brief(name)}' holds one direction and does not say of which layer; pass layer=12, say.")
        layer = int(named[1])
    if isinstance(content, (Tensor, list)):
        rows = content if isinstance(content, list) else [content]
        sites = _sites(layer, len(rows))
        return SteeringVector(
            {site: _direction(row, str(site)) for site, row in zip(sites, rows, strict=True)}, metadata
        )
    what = f"'{brief(name)}' should hold a direction, a matrix or list of them, or a mapping of layers"
    return SteeringVector({resid_post[n]: direction for n, direction in _by_layer(content, what).items()}, metadata)


def _sites(layer: Any, count: int) -> tuple[Site, ...]:
    sites = as_sites(layer)
    if len(sites) != count:
        raise DataError(f"The file holds {count} directions and layer names {len(sites)} sites; name one for each.")
    return sites


def _read(path: str | os.PathLike[str]) -> tuple[str, Any]:
    """The name of a file, and what it holds once nothing in it can harm."""
    try:
        path = Path(path)
        return path.name, decode_any(read_bytes(path, MAX_BYTES, "pass a file that torch.save wrote"))
    except Refused as refused:
        what = refused.what.replace("its tensor file", "the file")
        fix = refused.fix if refused.fix != SAVE_AGAIN else "save its tensors alone anew, with torch.save"
    except TypeError:
        what, fix = f"it is named by {brief(path)} of type {type(path).__name__}", "pass text or a Path"
    except (OSError, ValueError) as error:
        what, fix = getattr(error, "strerror", None) or brief(str(error)), "check the name"
    except Exception as error:  # whatever torch says to a pickle that passed the checks
        what, fix = f"it is damaged ({type(error).__name__}: {brief(str(error))})", "copy the original file again"
    raise FileError(f"Cannot read '{path}': {what}; {fix}.") from None


def _by_layer(directions: Any, what: str) -> dict[int, Tensor]:
    """Directions by layer, from a mapping of ints or of names that end in a number."""
    if not isinstance(directions, Mapping) or not directions:
        raise DataError(f"{what}, not {brief(directions)} of type {type(directions).__name__}.")
    out: dict[int, Tensor] = {}
    for key, value in directions.items():
        number = re.search(r"(-?\d{1,5})$", str(key))
        if number is None:
            raise DataError(f"{what}, by layer; {brief(key)!r} names no layer.")
        if int(number[1]) in out:
            raise DataError(f"{what}, by layer; {brief(key)!r} names layer {number[1]} once more.")
        out[int(number[1])] = _direction(value, f"layer {number[1]}")
    return dict(sorted(out.items()))


def _direction(value: Any, name: str) -> Tensor:
    try:
        direction = torch.as_tensor(value).detach().cpu().squeeze()
    except Exception:  # torch and numpy raise nearly anything here
        raise DataError(f"The direction of {name} is {brief(value)}; it must be a tensor.") from None
    if direction.ndim != 1 or not direction.is_floating_point():
        raise DataError(
            f"The direction of {name} is a {direction.ndim}-D tensor of {direction.dtype}; it must be one "
            "floating-point direction."
        )
    return direction
