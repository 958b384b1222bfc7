"""Saving and loading vectors: `save`, `load`, and `describe` for a file's own words.

The suffix picks the format from `FORMATS`; names keep their dots and nothing is ever appended to
them. Whatever is wrong with a file, `load` gives one `FileError`; it executes nothing and never
reads more than `MAX_BYTES`.
"""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from steerfn.values._arguments import public
from steerfn.values._checks import finite_number
from steerfn.values._errors import FileError, SteerError
from steerfn.values._fingerprint import check_match
from steerfn.values._vector import SteeringVector
from steerfn.values.files import _gguf, _json_pt, _safetensors
from steerfn.values.files._atomic import check_output, sync_folder, write_together
from steerfn.values.files._document import SAVE_AGAIN, Read, Refused, brief
from steerfn.values.files._hub import FILE, HubAddress, HubReader, is_hub
from steerfn.values.files._read import check_size, read_bytes


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
    ".safetensors": Format(_safetensors.encode, _safetensors.decode),
    ".json": Format(_json_pt.encode, _json_pt.decode, remove_former=_json_pt.remove_former),
    ".gguf": Format(_gguf.encode, _gguf.decode, exact=False),
}
"""By suffix; others may add their own (`FORMATS[".gguf"] = Format(...)`)."""


@public
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
    path, form = check_target(path, overwrite=overwrite)
    files = encode(vector, path, alpha=alpha)
    try:
        write_together(files)
        form.remove_former(path, files)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(
            f"The vector cannot be written to '{path}': {reason}; what was there before is unchanged, choose another "
            "place."
        ) from None
    return path


def encode(vector: Any, path: Path, *, alpha: float = 1.0) -> dict[Path, bytes]:
    """The files of a vector, which have been read back from memory, in the order of writing.

    Raises:
        FileError, ShapeError, SiteError: as `save`.
    """
    path, form = _format(path)
    if not isinstance(vector, SteeringVector):
        raise FileError(f"sf.save writes a SteeringVector, not a {type(vector).__name__}; pass sf.save(vector, path).")
    if finite_number("alpha", alpha) != 1:
        vector = alpha * vector
    files: dict[Path, bytes] = {}
    try:
        # Through the constructor, because an algebra or a transform may have left anything at the leaves.
        vector = SteeringVector(dict(zip(vector.sites, vector.directions, strict=True)), vector.metadata)
        files = form.encode(vector, path)
        back, _ = form.decode(path, lambda name, limit: _within_limit(files[name], limit))
        obstacle = None if back.identical(vector) or not form.exact else "it would not be read back bit for bit"
    except SteerError:
        raise
    except Refused as refused:
        obstacle = f"{refused.what} (the file would be refused by sf.load)"
    except Exception as error:  # whatever torch raises inside a transform, or on a device without data
        obstacle = f"its directions cannot be read here ({type(error).__name__}: {brief(str(error))})"
    if obstacle:
        raise FileError(
            f"Cannot save this vector as '{path}': {obstacle}; save finite CPU or GPU tensors and less metadata."
        )
    return files


def check_target(path: Any, *, overwrite: bool = True) -> tuple[Path, Format]:
    """Whether `save` could write a vector to a place, and in which format: to be asked before there is one.

    Raises:
        FileError: as `save`.
    """
    if is_hub(path):
        raise FileError(f"sf.save writes to this machine, and '{path}' is on the hub: call v.push_to_hub('user/name').")
    path, form = _format(path)
    check_output(path, "The vector")
    if path.exists() and not overwrite:
        raise FileError(f"'{path}' exists and overwrite=False; choose another name, or pass overwrite=True.")
    return path, form


@public
def load(path: str | os.PathLike[str], *, model: Any = None, strict: bool | str = False) -> SteeringVector:
    """Read a vector from a file, or from the hub, on the CPU; bit for bit what was saved.

    Args:
        path: a file that `save` wrote. It may come from anyone: nothing in it is executed. A text
            "hf://user/name[@revision][/file]" is fetched by `huggingface_hub` (by default "vector.safetensors" of the
            main branch), and without a connection read from its cache; `metadata["hub"]` then holds `repo`, `revision`
            (the commit), `file` and its `sha256`.
        model: the model it is meant for, to be checked against the one it was made from.
        strict: with `model`, True refuses a vector unless it was made from these very weights, "architecture" unless
            from a model of this architecture; by default another architecture warns. See `check_match`.

    Raises:
        FileError: a file that is missing, damaged, hostile, or of an unknown format; on the hub also no such
            repository or revision, no right to it, or no connection to a file that is not in the cache.
        ModelError: a vector that does not fit `model`, or with `strict` one that is not known to be of it.

    Example:
        >>> import tempfile, torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.attn_out[3]: torch.ones(8, dtype=torch.bfloat16)}, metadata={"method": "caa"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sf.load(sf.save(v, f"{folder}/happy.json")).metadata["method"]
        'caa'
    """
    vector, _ = _read_from(path)
    if model is not None:
        check_match(vector, model, strict=strict)
    return vector


def load_bytes(data: bytes, name: str) -> SteeringVector:
    """The vector in the bytes of a file that is not on a disk, such as an upload; as `load`, and with its walls.

    Args:
        data: the bytes.
        name: what the file is called: its suffix picks the format, and errors show it.

    Raises:
        FileError: as `load`.
    """
    vector, _ = _read(name, lambda _, limit: _within_limit(data, limit))
    return vector


def remove(path: Path) -> None:
    """Take a vector's file from the disk, for good; tensors that lie beside it go with it, or with the next `save`.

    Raises:
        OSError: the file system refuses.
    """
    path, form = _format(path)
    path.unlink()
    sync_folder(path.parent)
    form.remove_former(path, ())


@public
def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a vector file, once its checksums hold.

    Args:
        path: the file, or its address on the hub, as `load` takes it.

    Returns:
        `format` (the suffix without its dot), `version` of the format, `sites` by name, `metadata`,
        library `versions` that wrote it, and `sha256` of its tensors (the same in every format).

    Raises:
        FileError: as `load`.

    Example:
        >>> import tempfile, torch, steerfn as sf
        >>> v = sf.SteeringVector({sf.resid_post[3]: torch.ones(8)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sf.files.describe(sf.save(v, f"{folder}/happy.safetensors"))["sites"]
        ['resid_post[3]']
    """
    address = HubAddress.of(path)
    _, document = _read_from(path)
    kept = {key: document.get(key) for key in ("version", "sites", "metadata", "versions", "sha256")}
    return {"format": Path(path if address is None else address.file or FILE).suffix.lower()[1:], **kept}


def _read_from(path: str | os.PathLike[str]) -> tuple[SteeringVector, dict[str, Any]]:
    """The vector and the document of a file, on this machine or on the hub."""
    address = HubAddress.of(path)
    if address is None:
        return _read(path, read_bytes)
    reader = HubReader(address)
    vector, document = _read(reader.file, reader, str(address))
    return vector.with_metadata(hub=reader.provenance), document


def _read(path: str | os.PathLike[str], read: Read, shown: str | None = None) -> tuple[SteeringVector, dict[str, Any]]:
    path, form = _format(path)
    try:
        return form.decode(path, read)
    except Refused as refused:
        what, fix = refused.what, refused.fix
    except FileNotFoundError:
        what, fix = "there is no such file", "check the name and its folder"
    except OSError as error:
        what, fix = error.strerror or str(error), "check its permissions"
    except Exception as error:  # the promise of one clear error also covers what nobody foresaw
        what, fix = f"it is damaged ({type(error).__name__}: {brief(str(error))})", SAVE_AGAIN
    raise FileError(f"Cannot load '{shown or path}': {what}; {fix}.")


def _within_limit(data: bytes, limit: int) -> bytes:
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
