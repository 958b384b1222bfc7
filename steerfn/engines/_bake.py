"""`bake`: a plain checkpoint that behaves as the steered model does, for engines that know nothing of steering."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerfn._about import about_of
from steerfn._blocks import unwrapped
from steerfn._errors import DataError, FileError, ModelError
from steerfn._functional import functional
from steerfn._io import save
from steerfn._io_document import brief
from steerfn._io_write import TEMPORARY, temporary_name
from steerfn._layout import layout
from steerfn._steer import as_steering, prepared
from steerfn._text import encode
from steerfn._vector import SteeringVector
from steerfn.engines._bake_ablate import orthogonalised
from steerfn.engines._bake_add import with_biases
from steerfn.engines._bakeable import total, whole
from steerfn.operators import identity

PROBES = (
    "The weather this morning was",
    "In 1969, two people",
    "def add(a, b):\n    return",
    "Yes, but only if you promise to",
)
"""Texts on which the written checkpoint is compared with live steering."""
NOISE = 4
"""Rounding that two ways to the same logits may differ by, in units of the dtype's epsilon times their size."""
CLOSE = 0.05
"""The part of steering's effect that may be missing, where it is more than rounding."""
PROVENANCE = "steerfn.json"
ABANDONED = 86400.0
"""Seconds after which an unfinished folder belongs to no running bake."""


def bake(model: Any, tokenizer: Any, op: Any, out_dir: str | os.PathLike[str], *, max_shard_size: str = "5GB") -> Path:
    """Write a checkpoint that does without steering what the model does with it.

    Additions at block outputs become biases: `h + (W x + b) + alpha v = h + W x + (b + alpha v)`. An ablation of one
    direction along the whole stream makes every matrix that writes to it orthogonal to `r`: `W' = (I - r r^T) W`. Both
    hold for every token. The result is loaded by stock transformers, and by engines that honour its biases, such as
    vLLM; nothing of this library is needed to run it.

    What is written is loaded again with stock transformers and compared with live steering; where they differ, nothing
    is left behind. Beside weights, configuration, tokenizer (with chat template) and generation settings, the folder
    gets `steerfn.json`: what was done to which model, by which vector, how far it was checked, SHA-256 of every file,
    and how to get back; and the vector itself, in `steerfn/`.

    Args:
        model: the model; it is unchanged. Llama, Mistral and Qwen2 without sliding windows (both are written as Llama),
            Granite, GPT-2, GPT-NeoX and OPT for additions; these, Qwen3, Gemma 1, Phi and Phi-3 for an ablation.
        tokenizer: its tokenizer, which is written too.
        op: a vector (alpha 1), `add`s on all tokens, or `ablate(spread(v, layout(model).stream))`.
        out_dir: a folder that does not exist yet, or is empty.
        max_shard_size: of a weights file, as in transformers' `save_pretrained`.

    Returns:
        The folder.

    Raises:
        SteerError: an operator that weights cannot do (conditions, scopes, schedules, ...), with what to use.
        SiteError: an addition elsewhere than at a block's output.
        ModelError: an architecture that cannot hold it, weights that are quantized or offloaded, or a result that does
            not do what live steering does.
        DataError: no tokenizer, or a size that is none.
        FileError: a folder that holds something, or a disk that refuses.

    Source: Arditi et al. 2024 (orthogonalised weights).

    Example:
        >>> import steerfn as sf
        >>> sf.bake(model, tokenizer, sf.add(v, 2.0), "happy-model")  # doctest: +SKIP
        >>> AutoModelForCausalLM.from_pretrained("happy-model")  # doctest: +SKIP
    """
    if not hasattr(tokenizer, "save_pretrained"):
        raise DataError(
            f"bake writes the model's tokenizer too and needs it, not {tokenizer!r:.80}; pass a transformers tokenizer."
        )
    if not isinstance(out_dir, (str, os.PathLike)):
        raise FileError(f"bake writes into a folder, named by text or a Path, not by {out_dir!r:.80}.")
    if re.fullmatch(r"[1-9]\d*(KB|MB|GB|TB)", str(max_shard_size)) is None:
        raise DataError(f"max_shard_size is a size such as '5GB' or '500MB', not {max_shard_size!r:.80}.")
    root = unwrapped(model)
    found = layout(root)
    steering = prepared(as_steering(op), root, found, strict=False)
    deltas, direction = whole(steering, found)
    _check_weights(root)
    folder = Path(out_dir)
    _check_free(folder)
    made = with_biases(root, found, deltas) if direction is None else orthogonalised(root, found, direction)
    made.generation_config = root.generation_config
    kept = SteeringVector(total(deltas) if direction is None else {site: direction.float() for site in found.stream})
    try:
        with _staged(folder) as staged:
            _write(made, tokenizer, staged, max_shard_size)
            (staged / "steerfn").mkdir()
            save(kept, staged / "steerfn" / "vector.safetensors")
            checked = _checked(root, tokenizer, steering, staged)
            record = {
                "what": "a checkpoint with steering baked into its weights by steerfn",
                "how": "biases of block outputs" if direction is None else "weights orthogonal to a direction",
                "operator": str(op),
                **about_of(root, [steering], {"architecture_written": type(made).__name__, "check": checked}),
                "back": "Nothing of the original model was changed: load it by the name above. Live, the same is "
                + ("sf.add" if direction is None else "sf.ablate")
                + "(sf.load('steerfn/vector.safetensors')) on it.",
                "sha256": {path.relative_to(staged).as_posix(): _sha256(path) for path in _files(staged)},
            }
            (staged / PROVENANCE).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf8")
    except OSError as error:
        raise FileError(f"Cannot write '{folder}': {error.strerror or error}; nothing was left there.") from None
    return folder


def _write(made: Any, tokenizer: Any, folder: Path, max_shard_size: str) -> None:
    """Write weights and tokenizer, with one error for a disk that refuses.

    Raises:
        OSError: the disk refuses; the libraries' own writers, in Rust, say so in exceptions of their own.
    """
    try:
        made.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {brief(str(error), 200)}") from None


def _check_weights(root: Any) -> None:
    for name, tensor in root.state_dict().items():
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type != "meta"
        if not plain or (name.endswith("weight") and not tensor.is_floating_point()):
            raise ModelError(
                f"{name} is quantized, offloaded or sharded ({type(tensor).__name__} of {tensor.dtype} on "
                f"{tensor.device}) and cannot be rewritten; load the model in bf16 or fp32, whole, and bake that."
            )


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"'{folder}' already holds something, which is never overwritten; name another folder.")
    if not folder.absolute().parent.is_dir():
        raise FileError(f"The folder '{folder.absolute().parent}' does not exist; make it first.")


def _remove_abandoned(folder: Path) -> None:
    """Remove what runs that were killed left, once nothing in it has changed for a day."""
    with contextlib.suppress(OSError):
        for each in folder.iterdir():
            if TEMPORARY.fullmatch(each.name) and each.is_dir() and not each.is_symlink():
                if time.time() - max(path.stat().st_mtime for path in (each, *each.rglob("*"))) > ABANDONED:
                    shutil.rmtree(each)


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name at the end, or is gone."""
    _remove_abandoned(folder.absolute().parent)
    staged = temporary_name(folder.absolute())
    staged.mkdir()
    try:
        yield staged
        if folder.exists():
            folder.rmdir()
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _checked(root: Any, tokenizer: Any, steering: Any, staged: Path) -> dict[str, float]:
    """Compare the written checkpoint with live steering, in root mean squares of logits.

    Raises:
        ModelError: they differ, or steering does so little that they cannot be told apart.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        staged, dtype=root.dtype, output_loading_info=True, attn_implementation=root.config._attn_implementation
    )
    made, report = loaded
    if wrong := {key: value for key, value in report.items() if value and "key" in key}:
        raise ModelError(f"transformers does not take the checkpoint as it is written ({wrong!r:.200}).")
    made = made.to(root.device).eval()
    run, training = functional(root), root.training
    logits: dict[str, list[Tensor]] = {"live": [], "plain": [], "baked": []}
    root.eval()
    try:
        with torch.no_grad():
            for ids in encode(tokenizer, list(PROBES), False):
                rows = torch.tensor([ids], device=root.device)
                for name, one in (
                    ("live", run(steering, rows, use_cache=False)),
                    ("plain", run(identity, rows, use_cache=False)),
                    ("baked", made(rows, use_cache=False)),
                ):
                    logits[name].append(one.logits[0].double().cpu())
    finally:
        root.train(training)
    live, plain, baked = (torch.cat(logits[name]) for name in ("live", "plain", "baked"))
    size, effect, apart = (float(each.square().mean().sqrt()) for each in (live, live - plain, baked - live))
    noise = NOISE * torch.finfo(root.dtype).eps * size
    if not effect > 2 * noise:
        raise ModelError(
            f"Steering moves the logits by {effect:.2g} of {size:.2g} (root mean square), which in {root.dtype} cannot "
            "be told from rounding, so the checkpoint cannot be checked; bake the model in float32, or pass a larger "
            "alpha."
        )
    if not apart <= max(noise, CLOSE * effect):
        raise ModelError(
            f"The checkpoint's logits differ from live steering by {apart:.2g} (root mean square) where steering moves "
            f"them by {effect:.2g}; nothing was left on the disk. This architecture is not what steerfn takes it for: "
            "please report it."
        )
    return {
        "logits_rms": size,
        "effect_rms": effect,
        "difference_rms": apart,
        "largest": float((baked - live).abs().max()),
    }


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
