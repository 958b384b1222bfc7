"""A feature of a sparse autoencoder as a steering vector: one row of its decoder."""

import json
import operator
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steerfn.values import DataError, FileError, Site, SteeringVector, as_sites, finite_number, integer, public, unit
from steerfn.values.files import Refused, brief, read_bytes

WEIGHTS, CONFIG, DECODER = "sae_weights.safetensors", "cfg.json", "W_dec"
MAX_CONFIG = 2**20
"""Largest `cfg.json` read; real ones have a few kilobytes."""

HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}
"""TransformerLens' hooks on the stream, and on what is added to it, by their names here."""


@public
def from_sae(
    path: str | os.PathLike[str], feature: int, site: Any = None, *, norm: float | None = None
) -> SteeringVector:
    """The decoder direction of a feature of a sparse autoencoder: `v = W_dec[feature]`.

    Reads SAELens' files: `sae_weights.safetensors` with `W_dec` `[features, d_model]`, and beside it `cfg.json`,
    whose hook names the site (`blocks.12.hook_resid_post` is `resid_post[12]`). Only the row is read, however large
    the file is.

    Args:
        path: the folder, or the weights in it.
        feature: the row, from 0.
        site: one or several, in place of what the configuration names; an int means `resid_post`.
        norm: the L2 norm to scale the row to, in units of the residual stream; None takes it as it is (most
            decoders have rows of norm 1, which is little against the norm of a stream).

    Returns:
        A vector in float32. Its metadata has the feature, the hook and the model that the configuration names.

    Raises:
        FileError: a missing or damaged file, one without `W_dec`, or a configuration without a known hook.
        DataError: a feature out of range, or a norm that is no positive number.

    Source: Templeton et al. 2024, "Scaling Monosemanticity" (steering with features); Bloom et al., SAELens.

    Example:
        >>> import steerfn as sf
        >>> import json, pathlib, safetensors.torch, torch
        >>> pathlib.Path("cfg.json").write_text(json.dumps({"hook_name": "blocks.12.hook_resid_post"}))
        42
        >>> safetensors.torch.save_file({"W_dec": torch.eye(4)}, "sae_weights.safetensors")
        >>> sf.discover.from_sae(".", feature=2, norm=50.0)[12]
        tensor([ 0.,  0., 50.,  0.])
    """
    try:
        source = Path(path)
    except TypeError:
        raise FileError(f"The path of an SAE must be a str or a Path, not {path!r:.80}.") from None
    weights = source / WEIGHTS if source.is_dir() else source
    config = _config(weights.parent / CONFIG)
    hook = _first_text(config, "hook_name", "hook_point")
    sites = (_site(hook, weights),) if site is None else as_sites(site)
    row, features = _row(weights, feature)
    if norm is not None:
        row = finite_number("norm", norm, above=0, hint="None keeps the length of the row") * unit(row)
    metadata = {
        "method": "sae",
        "sae": weights.resolve().parent.name,
        "feature": operator.index(feature),
        "features": features,
    }
    metadata |= {
        "hook": hook,
        "sae_model": _first_text(config, "model_name"),
        "neuronpedia": _first_text(config, "neuronpedia_id"),
    }
    return SteeringVector(dict.fromkeys(sites, row), metadata)


def _row(path: Path, feature: Any) -> tuple[Tensor, int]:
    """One row of the decoder in float32, and how many there are."""
    if not path.is_file():
        raise FileError(
            f"Cannot read '{path}': there is no such file; pass the folder that holds {WEIGHTS}, or that file."
        )
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if DECODER not in names:
                raise FileError(
                    f"'{path}' holds no {DECODER} but {brief(', '.join(names), 120)}; pass an SAE in SAELens' format."
                )
            decoder = file.get_slice(DECODER)
            shape = decoder.get_shape()
            if len(shape) != 2:
                raise FileError(f"{DECODER} in '{path}' has shape {shape}; an SAE has [features, d_model].")
            number = integer("feature", feature, hint="it is the number of a row")
            if not 0 <= number < shape[0]:
                raise DataError(f"Feature {number} is out of range: '{path}' has {shape[0]}, from 0 to {shape[0] - 1}.")
            row = decoder[number : number + 1][0]
    except (SafetensorError, OSError) as error:
        raise FileError(f"Cannot read '{path}': {brief(str(error))}; copy the original file again.") from None
    if not row.is_floating_point():
        raise FileError(f"{DECODER} in '{path}' holds {row.dtype}; an SAE's decoder holds floating-point numbers.")
    if not bool(torch.isfinite(row.float()).all()):
        raise FileError(f"Row {number} of {DECODER} in '{path}' is not finite; copy the original file again.")
    return row.float(), shape[0]


def _config(path: Path) -> dict[str, Any]:
    """The contents of `cfg.json`, with those of its newer `metadata` object; empty where there is no such file."""
    try:
        document = json.loads(read_bytes(path, MAX_CONFIG))
        if not isinstance(document, dict):
            raise ValueError("it is not the JSON object of an SAE")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, Refused) as error:
        raise FileError(f"Cannot read '{path}': {brief(str(error))}; copy the original file again.") from None
    inner = document.get("metadata")
    return document | (inner if isinstance(inner, dict) else {})


def _first_text(config: dict[str, Any], *keys: str) -> str | None:
    return next((brief(config[key]) for key in keys if isinstance(config.get(key), str)), None)


def _site(hook: str | None, weights: Path) -> Site:
    """The site that a hook of TransformerLens is."""
    if hook is None:
        raise FileError(f"No {CONFIG} beside '{weights}' names a hook; pass the site, such as site=sf.resid_post[12].")
    named = re.fullmatch(r"blocks\.(\d+)\.(\w+)", hook)
    if named is None or named[2] not in HOOKS:
        raise FileError(
            f"The SAE in '{weights}' was trained on {hook!r}, which is not a site of the residual stream (known: "
            f"{', '.join(HOOKS)}); pass the site where its decoder writes, such as site=sf.resid_post[12]."
        )
    return Site(HOOKS[named[2]], int(named[1]))
