"""Saving and loading vectors: `save`, `load`, and `describe` for a file's own words.

The suffix picks the format from `FORMATS`; names keep their dots and nothing is ever appended to
them. Whatever is wrong with a file, `load` gives one `FileError`; it executes nothing and never
reads more than `MAX_BYTES`.
"""

import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from steerfn import _io_json, _io_safetensors
from steerfn._errors import FileError, SteerError
from steerfn._fingerprint import check_match
from steerfn._io_document import SAVE_AGAIN, Read, Refused, brief
from steerfn._io_read import check_size, read_bytes
from steerfn._io_write import write_together
from steerfn._vector import SteeringVector


class Format(NamedTuple):
    """One file format.

    `encode` gives the bytes of each file, in the order of writing; `decode` gives the vector and its
    document, or raises `Refused`. An `exact` format gives back every bit. `remove_former` removes what a
    vector of the same name had besides the files that are now written.
    """

    encode: Callable[[SteeringVector, Path], dict[Path, bytes]]
    decode: Callable[[Path, Read], tuple[SteeringVector, dict[str, Any]]]
    exact: bool = True
    remove_former: Callable[[Path, Collection[Path]], None] = lambda path, written: None


FORMATS: dict[str, Format] = {
    ".safetensors": Format(_io_safetensors.encode, _io_safetensors.decode),
    ".json": Format(_io_json.encode, _io_json.decode, remove_former=_io_json.remove_former),
}
"""By suffix; an engine adds its own (`FORMATS[".gguf"] = Format(...)`)."""


def save(vector: SteeringVector, path: str | os.PathLike[str], *, alpha: float = 1.0, overwrite: bool = True) -> Path:
    """Write a vector to a file, whole or not at all; the suffix picks the format.

    `.safetensors` is one file; `.json` is readable text with its tensors in a `.pt` beside it, whose name holds its
    hash; `.gguf` is a control vector of llama.cpp (block outputs from block 1 on, in float32). The file is read back
    from memory before anything is written, so what is written can be loaded. Several processes may save under one
    name: the last one's vector is there, whole, and readers beside them get one or the other. The permissions of a
    file that is replaced are kept.

    Args:
        vector: what to save, with its metadata.
        path: a name with a known suffix, in a folder that exists.
        alpha: what the vector is multiplied by: for engines that have no strength of their own.
        overwrite: whether a vector already there may be replaced.

    Returns:
        The path.

    Raises:
        FileError: an unknown suffix, no such folder, a file in the way, or a disk that refuses.
        ShapeError: a vector whose directions are not finite.
        SiteError: a site that the format cannot name.

    Example:
        >>> import tempfile, torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[3]: torch.ones(8)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = sf.save(v, f"{folder}/happy-1.5.safetensors")
        ...     path.name, sf.load(path).identical(v)
        ('happy-1.5.safetensors', True)
    """
    path, form = _format(path)
    if not isinstance(vector, SteeringVector):
        raise FileError(f"sf.save writes a SteeringVector, not a {type(vector).__name__}; pass sf.save(vector, path).")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise FileError(f"alpha is a finite number, not {alpha!r:.80}.")
    if alpha != 1:
        vector = alpha * vector
    files: dict[Path, bytes] = {}
    try:
        # Through the constructor, because an algebra or a transform may have left anything at the leaves.
        vector = SteeringVector(dict(zip(vector.sites, vector.directions, strict=True)), vector.metadata)
        files = form.encode(vector, path)
        back, _ = form.decode(path, lambda name, limit: _bounded(files[name], limit))
        told = None if back.identical(vector) or not form.exact else "it would not be read back bit for bit"
    except SteerError:
        raise
    except Refused as refused:
        told = f"{refused.what} (the file would be refused by sf.load)"
    except Exception as error:  # whatever torch raises inside a transform, or on a device without data
        told = f"its directions cannot be read here ({type(error).__name__}: {brief(str(error))})"
    if told:
        raise FileError(
            f"Cannot save this vector as '{path}': {told}; save finite CPU or GPU tensors and less metadata."
        )
    try:
        _check_target(path, overwrite)
        write_together(files)
        form.remove_former(path, files)
    except (OSError, ValueError) as error:
        if isinstance(error, SteerError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(
            f"Cannot write '{path}': {reason}; what was there before is unchanged, choose another place."
        ) from None
    return path


def load(path: str | os.PathLike[str], *, model: Any = None, strict: bool | str = False) -> SteeringVector:
    """Read a vector from a file, on the CPU; bit for bit what was saved.

    Args:
        path: a file that `save` wrote. It may come from anyone: nothing in it is executed.
        model: the model it is meant for, to be checked against the one it was made from.
        strict: with `model`, True refuses a vector unless it was made from these very weights, "architecture" unless
            from a model of this architecture; by default another architecture warns. See `check_match`.

    Raises:
        FileError: a file that is missing, damaged, hostile, or of an unknown format.
        ModelError: a vector that does not fit `model`, or with `strict` one that is not known to be of it.

    Example:
        >>> import tempfile, torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.attn_out[3]: torch.ones(8, dtype=torch.bfloat16)}, metadata={"method": "caa"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sf.load(sf.save(v, f"{folder}/happy.json")).metadata["method"]
        'caa'
    """
    vector, _ = _read(path)
    if model is not None:
        check_match(vector, model, strict=strict)
    return vector


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a vector file says of itself, once its checksums hold.

    Returns:
        `format` (the suffix without its dot), `version` of the format, `sites` by name, `metadata`,
        library `versions` that wrote it, and `sha256` of its tensors (the same in every format).

    Raises:
        FileError: as `load`.

    Example:
        >>> import tempfile, torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[3]: torch.ones(8)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sf.describe(sf.save(v, f"{folder}/happy.safetensors"))["sites"]
        ['resid_post[3]']
    """
    _, document = _read(path)
    kept = {key: document.get(key) for key in ("version", "sites", "metadata", "versions", "sha256")}
    return {"format": Path(path).suffix.lower()[1:], **kept}


def _read(path: str | os.PathLike[str]) -> tuple[SteeringVector, dict[str, Any]]:
    path, form = _format(path)
    try:
        return form.decode(path, read_bytes)
    except Refused as refused:
        what, fix = refused.what, refused.fix
    except FileNotFoundError:
        what, fix = "there is no such file", "check the name and its folder"
    except OSError as error:
        what, fix = error.strerror or str(error), "check its permissions"
    except Exception as error:  # the promise of one clear error also covers what nobody foresaw
        what, fix = f"it is damaged ({type(error).__name__}: {brief(str(error))})", SAVE_AGAIN
    raise FileError(f"Cannot load '{path}': {what}; {fix}.")


def _bounded(data: bytes, limit: int) -> bytes:
    check_size(len(data), limit)
    return data


def _format(path: str | os.PathLike[str]) -> tuple[Path, Format]:
    try:
        path = Path(path)
    except TypeError:
        raise FileError(
            f"A vector file is named by text or a Path, not by {brief(path)} of type {type(path).__name__}."
        ) from None
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        return path, FORMATS[suffix]
    hint = (
        f"pass '{path.stem}.json', which names it"
        if suffix == ".pt"
        else f"name it for example '{path.name}.safetensors'"
    )
    known = ", ".join(FORMATS)
    raise FileError(f"'{path}' does not end in a suffix that names a format ({known}); {hint}.")


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise FileError(f"Cannot write '{path}': there is no folder '{path.parent}'; create it first.")
    if path.exists() and not overwrite:
        raise FileError(f"'{path}' exists and overwrite=False; choose another name, or pass overwrite=True.")
