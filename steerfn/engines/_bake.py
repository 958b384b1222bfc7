"""`bake`: a plain checkpoint that behaves as the steered model does, for engines that know nothing of steering."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerfn.engines._foldable import fold_operator, total
from steerfn.engines._weights import orthogonal_to, with_biases
from steerfn.model import Model, Tokenizer, layout, run_provenance, unwrap_model
from steerfn.operators import identity
from steerfn.run import encode
from steerfn.values import DataError, FileError, ModelError, SteeringVector, file_sha256, public
from steerfn.values.files import TEMPORARY, brief, save, temporary_name
from steerfn.verbs import as_steering, functional, prepare_operator

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


@public
def bake(
    model: Model, tokenizer: Tokenizer, op: Any, out_dir: str | os.PathLike[str], *, max_shard_size: str = "5GB"
) -> Path:
    """Write a checkpoint that computes without steering what the model computes with it.

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
        DataError: no tokenizer, or a `max_shard_size` that is not a size such as "5GB".
        FileError: a folder that holds something, or a disk that refuses.

    Source: Arditi et al. 2024 (orthogonalised weights).

    Example:
        >>> import steerfn as sf
        >>> from transformers import AutoModelForCausalLM
        >>> folder = sf.bake(model, tokenizer, sf.add(v, 2.0), "happy-model")
        >>> baked = AutoModelForCausalLM.from_pretrained(folder).to(model.device)
        >>> with sf.steer(model, v, alpha=2.0):
        ...     bool((baked(**inputs).logits - model(**inputs).logits).abs().max() < 0.01)
        True
    """
    folder = check_folder(out_dir)
    if re.fullmatch(r"[1-9]\d*(KB|MB|GB|TB)", str(max_shard_size)) is None:
        raise DataError(f"max_shard_size is a size such as '5GB' or '500MB', not {max_shard_size!r:.80}.")
    root = unwrap_model(model)
    model_layout = layout(root)
    steering = prepare_operator(as_steering(op), root, model_layout)
    deltas, direction = fold_operator(steering, model_layout)
    _check_weights(root)
    baked = (
        with_biases(root, model_layout, deltas) if direction is None else orthogonal_to(root, model_layout, direction)
    )
    baked.generation_config = root.generation_config
    directions = total(deltas) if direction is None else {site: direction.float() for site in model_layout.stream}
    vector = SteeringVector(directions, _shared_metadata(steering.vectors))
    try:
        with _staging_folder(folder) as staged:
            _write(baked, tokenizer, staged, max_shard_size)
            (staged / "steerfn").mkdir()
            save(vector, staged / "steerfn" / "vector.safetensors")
            figures = _compare_with_live(root, tokenizer, steering, staged)
            files = sorted(path for path in staged.rglob("*") if path.is_file())
            record = {
                "what": "a checkpoint with steering baked into its weights by steerfn",
                "how": "biases of block outputs" if direction is None else "weights orthogonal to a direction",
                "operator": str(op),
                **run_provenance(root, [steering], {"architecture_written": type(baked).__name__, "check": figures}),
                "back": "Nothing of the original model was changed: load it by the name above. Live, the same is "
                + ("sf.add" if direction is None else "sf.ablate")
                + "(sf.load('steerfn/vector.safetensors')) on it.",
                "sha256": {path.relative_to(staged).as_posix(): file_sha256(path) for path in files},
            }
            (staged / PROVENANCE).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf8")
    except OSError as error:
        raise FileError(f"Cannot write '{folder}': {error.strerror or error}; nothing was left there.") from None
    return folder


def _shared_metadata(vectors: Sequence[SteeringVector]) -> dict[str, Any]:
    """The metadata on which all vectors agree, such as the model that they were made from."""
    records = [dict(vector.metadata) for vector in vectors]
    first = records[0] if records else {}
    return {key: value for key, value in first.items() if all(each.get(key) == value for each in records)}


def _write(made: Any, tokenizer: Any, folder: Path, max_shard_size: str) -> None:
    """Write weights and tokenizer, with one error for a disk that refuses.

    Raises:
        ModelError: generation settings that transformers does not write.
        OSError: the disk refuses; the libraries' own writers, in Rust, say so in exceptions of their own.
    """
    try:
        made.generation_config.save_pretrained(folder)  # before the weights, which take long
    except ValueError as error:
        raise ModelError(
            f"transformers refuses to write the model's generation settings ({brief(str(error), 300)}); make "
            "model.generation_config consistent, or set it to transformers.GenerationConfig()."
        ) from None
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


def check_folder(out_dir: Any) -> Path:
    """Find out whether `bake` could write its folder, by making one beside it.

    Raises:
        FileError: no path, a folder that holds something, one in a folder that does not exist, or a disk that refuses.
    """
    if not isinstance(out_dir, (str, os.PathLike)):
        raise FileError(f"bake writes into a folder, named by text or a Path, not by {out_dir!r:.80}.")
    folder = Path(out_dir)
    parent = folder.absolute().parent
    try:
        holds = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if parent.is_dir():
            trial = temporary_name(folder.absolute())
            trial.mkdir()
            trial.rmdir()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise FileError(f"Cannot write '{folder}': {getattr(error, 'strerror', None) or error}.") from None
    if holds:
        raise FileError(f"'{folder}' already holds something, which is never overwritten; name another folder.")
    if not parent.is_dir():
        raise FileError(f"The folder '{parent}' does not exist; make it first.")
    return folder


def _remove_abandoned(folder: Path) -> None:
    """Remove what runs that were killed left, once nothing in it has changed for a day."""
    with contextlib.suppress(OSError):
        for each in folder.iterdir():
            if TEMPORARY.fullmatch(each.name) and each.is_dir() and not each.is_symlink():
                if time.time() - max(path.stat().st_mtime for path in (each, *each.rglob("*"))) > ABANDONED:
                    shutil.rmtree(each)


@contextlib.contextmanager
def _staging_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to it at the end, or removed after an error."""
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


def _compare_with_live(root: Any, tokenizer: Any, steering: Any, staged: Path) -> dict[str, float]:
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
