"""Files for `lm_eval --model steered` (EleutherAI's lm-evaluation-harness)."""

import io
import os
from pathlib import Path
from typing import Any

import torch

from steerfn.model import Model, layout, unwrap_model
from steerfn.operators import as_vector
from steerfn.values import FileError, ModelError, SiteError, SteeringVector, finite_number, public
from steerfn.values.files import check_output, write_together

BLOCKS = "layers"
"""Where most architectures keep their blocks inside their base model."""
ELSEWHERE = ("GPT2", "GPTNeoFor", "GPTJ", "Bloom", "Falcon", "OPT", "Mpt", "GPTBigCode", "CodeGen", "CTRL", "XGLM")
"""Architectures that keep them under another name."""


@public
def to_lm_eval(
    vector: SteeringVector, path: str | os.PathLike[str], alpha: float = 1.0, *, model: Model | None = None
) -> Path:
    """Write a vector for the `steered` model of lm-evaluation-harness: `alpha * v` is added at every token.

        lm_eval --model steered --model_args pretrained=NAME,steer_path=v.pt --tasks ...

    Args:
        vector: directions at `resid_post` sites.
        path: the file, a name that ends in `.pt`.
        alpha: the strength.
        model: the model, which says what its blocks are called; needed where that is not `layers` (GPT-2, OPT, ...),
            and to name blocks from the end.

    Returns:
        The path.

    Raises:
        DataError: a strength that is not a finite number.
        SiteError: a site that the harness cannot name: it adds to the outputs of modules at every token.
        ModelError: a vector of an architecture whose blocks have another name, without `model`.
        FileError: a name that does not end in `.pt`, or a disk that refuses.

    Source: lm-evaluation-harness 0.4.13, `lm_eval/models/hf_steered.py`.

    Example:
        >>> import tempfile, torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[12]: torch.ones(8)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     list(torch.load(sf.to_lm_eval(v, f"{folder}/v.pt", alpha=2.0), weights_only=True))
        ['layers.12']
    """
    vector = as_vector(vector, "to_lm_eval")
    alpha = finite_number("alpha", alpha)
    path = check_target(path)
    if model is not None:
        vector = vector.resolve(layout(unwrap_model(model)).n_layers)
    entries = {}
    for site, direction in zip(vector.sites, vector.directions, strict=True):
        if site.kind != "resid_post" or site.block < 0:
            raise SiteError(
                f"lm_eval adds to the outputs of blocks (resid_post, counted from the first) and cannot say {site}; "
                "use steerfn's own sf.score for it" + (", or pass model=..." if site.block < 0 else "") + "."
            )
        entries[_name(vector, site.block, model)] = {
            "steering_vector": direction.detach().cpu().float().contiguous(),
            "action": "add",
            "steering_coefficient": float(alpha),
            "bias": None,
            "head_index": None,
        }
    buffer = io.BytesIO()
    torch.save(entries, buffer)
    try:
        write_together({path: buffer.getvalue()})
    except (OSError, ValueError) as error:
        raise FileError(
            f"The vector cannot be written to '{path}': {getattr(error, 'strerror', None) or error}; choose another "
            "place."
        ) from None
    return path


def check_target(path: Any) -> Path:
    """Check that `to_lm_eval` can write to a path.

    Raises:
        FileError: as `to_lm_eval`.
    """
    path = check_output(path, "The vector")
    if path.suffix != ".pt":
        raise FileError(f"lm_eval reads steering from a .pt or .csv file; name it '{path.stem}.pt', say.")
    return path


def _name(vector: SteeringVector, block: int, model: Any) -> str:
    """The name of a block inside `model.base_model`."""
    if model is not None:
        root = unwrap_model(model)
        prefix = f"{root.base_model_prefix}."
        return layout(root).blocks[block].path.removeprefix(prefix)
    made = vector.metadata.get("model")
    named = str(made.get("architecture", "")) if isinstance(made, dict) else ""
    if named.startswith(ELSEWHERE):
        raise ModelError(f"The blocks of a {named} are not called {BLOCKS!r}; pass model=..., which says their name.")
    return f"{BLOCKS}.{block}"
