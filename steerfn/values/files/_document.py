"""The document in every vector file: what the tensors are, and the checksums that protect both.

It is one JSON object: format name and version, the sites in order, the vector's metadata, the library
versions that wrote it, `sha256` over the tensors, and `document_sha256` over all the rest. Checksums
find damage, not forgery: whoever writes a file can write its checksums, so every reader checks the
bounds of what it reads as if there were none.
"""

import hashlib
import importlib.metadata
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from steerfn.values._errors import SteerError
from steerfn.values._shapes import check_shapes
from steerfn.values._site import Site
from steerfn.values._vector import SteeringVector
from steerfn.values._visible import visible_line

FORMAT, VERSION = "steerfn", 1

MAX_BYTES = 256 * 2**20
"""Largest file read: twice a float64 direction at every site of a 126-block model of width 16384."""
MAX_DOCUMENT = 10 * 2**20
"""Largest JSON read, and the largest safetensors header."""
MAX_TENSORS = 50_000
"""Most directions in a file: three times the heads of such a model."""

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}

Read = Callable[[Path, int], bytes]
"""Gives the bytes of a file that may hold no more than so many."""

SAVE_AGAIN = "copy the original file again, or save the vector again with sf.save"


class Refused(Exception):
    """Why a file is not a vector: the fault and the fix. The entry points add the path."""

    def __init__(self, what: str, fix: str = SAVE_AGAIN) -> None:
        super().__init__(what)
        self.what, self.fix = brief(what, 400), fix


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 200, 200, 200
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = 10


def brief(value: Any, limit: int = 80) -> str:
    """Text for a message, of bounded length and on one line: a hostile file chooses its own words.

    Values are described in bounded time too: repr of a list that holds itself twice, forty times over, never ends.
    """
    text = " ".join((value[: 20 * limit] if isinstance(value, str) else _SHORT.repr(value)).split())
    text = visible_line(text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def parse_json(data: bytes) -> Any:
    """JSON, strictly: UTF-8, no duplicate keys, no NaN or infinity, no nesting that exhausts the stack."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_not_finite,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError:
        raise Refused("its JSON is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise Refused(f"it does not hold valid JSON ({brief(str(error))})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise Refused("its JSON repeats a key")
    return unique


def _not_finite(text: str) -> NoReturn:
    raise Refused(f"its JSON holds {text}, which is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(brief(text))


def _integer(text: str) -> int:
    # The bound of later Pythons, where int() has one: converting digits takes quadratic time.
    if len(text) > 4300:
        raise Refused(f"its JSON holds an integer of {len(text)} digits")
    return int(text)


def tensors_of(vector: SteeringVector) -> dict[str, Tensor]:
    """The directions by site name, on the CPU, detached and contiguous."""
    pairs = zip(vector.sites, vector.directions, strict=True)
    return {str(site): d.detach().cpu().contiguous() for site, d in pairs}


def vector_sha256(vector: SteeringVector) -> str:
    """The hash that a vector's file carries: of its directions with their sites, dtypes and shapes."""
    return _digest(tensors_of(vector))


def compose(vector: SteeringVector, tensors: Mapping[str, Tensor], /, **more: Any) -> dict[str, Any]:
    """The document of a vector, sealed with its checksums."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "sites": list(tensors),
        "metadata": dict(vector.metadata),
        "versions": {"steerfn": version_of("steerfn"), "torch": str(torch.__version__)},
        "sha256": _digest(tensors),
        **more,
    }
    return {**document, "document_sha256": _seal(document)}


def verify(document: Any) -> dict[str, Any]:
    """The document, once it is one and its own checksum holds."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Refused("its JSON is not a steerfn document", "load a file that sf.save wrote")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise Refused(f"it has format version {brief(version)} and this steerfn reads {VERSION}", "update steerfn")
    wanted = {"sites": list, "metadata": dict, "versions": dict, "sha256": str, "document_sha256": str}
    for key, kind in wanted.items():
        if not isinstance(document.get(key), kind):
            raise Refused(f"the entry {key!r} of its document is missing or of the wrong type")
    if _seal({k: v for k, v in document.items() if k != "document_sha256"}) != document["document_sha256"]:
        raise Refused("its document was changed since it was saved (the SHA-256 does not match)")
    return document


@check_shapes
def assemble(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SteeringVector:
    """The vector of a verified document and the tensors that were read for it."""
    names = document["sites"]
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise Refused("its list of sites repeats a site or holds something else")
    if set(names) != set(tensors):
        odd = sorted(set(names) ^ set(tensors))
        raise Refused(f"its list of sites and its tensors differ, for example in {brief(odd[0])!r}")
    ordered = {name: tensors[name] for name in names}
    sites = [_site(name) for name in ordered]
    for name, tensor in ordered.items():
        if tensor.dtype not in DTYPES.values() or tensor.ndim != 1:
            raise Refused(
                f"{name} is a {tensor.ndim}-D tensor of {tensor.dtype}, and a direction is 1-D floating point"
            )
    if _digest(ordered) != document["sha256"]:
        raise Refused("its tensors were changed since it was saved (the SHA-256 does not match)")
    try:
        return SteeringVector(dict(zip(sites, ordered.values(), strict=True)), document["metadata"])
    except SteerError as error:
        raise Refused(brief(str(error).rstrip("."), 300).replace("; ", ", ")) from None


def _site(name: str) -> Site:
    """The one concrete site of a name written as this library writes it.

    Ranges are refused: `resid_post[0:999999999]` is a short name for a billion directions.
    """
    try:
        site = Site.parse(name) if len(name) <= 100 else None
    except SteerError:
        site = None
    if site is None or site.is_range or str(site) != name:
        raise Refused(f"{brief(name)!r} names no single site", "name tensors as in 'resid_post[12]'")
    return site


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in site order; the same in every format."""
    described = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
    digest = hashlib.sha256(json.dumps(described).encode())
    for tensor in tensors.values():
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _seal(document: Mapping[str, Any]) -> str:
    # Of the values and not of the text, so that white space and the order of keys are free.
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode()).hexdigest()


def version_of(package: str) -> str:
    """The version of an installed package, "unknown" of one that only lies on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
