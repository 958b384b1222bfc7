"""The `.pt` file beside a `.json`: `torch.save` of a dict of 1-D tensors, read without trusting it.

A `.pt` file is a zip archive of a pickle and of one file of bytes for each tensor. `weights_only=True`
keeps a pickle from running code, but not from asking for any amount of memory (`bytearray(10**12)`, an
expanded view of one number). So `torch.load` sees a file only after three checks:

1. the archive is uncompressed and no larger inside than outside (no zip bomb);
2. the pickle, followed instruction by instruction without running any, says only "name: all of these bytes";
3. each of those byte files has the size that the pickle claims (torch 2.13 checks this too).

What passes is written anew and read from there: two zip readers may see two archives in one file.
"""

import dataclasses
import io
import pickletools
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerfn._io_document import MAX_DOCUMENT, MAX_TENSORS, Refused, brief

_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
_STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
}
_NOTES = {"version": (b"3\n",), "byteorder": (b"little", b"big")}


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a `.pt` file."""
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer, pickle_protocol=2)  # the one protocol that `_claims` reads
    return buffer.getvalue()


def decode(data: bytes) -> dict[str, Tensor]:
    """The tensors of a `.pt` file that holds 1-D tensors by name and nothing else."""
    members = _members(data)
    code = members.get("data.pkl", b"")
    if not 0 < len(code) <= MAX_DOCUMENT:
        raise Refused(f"its tensor file holds a pickle of {len(code)} bytes")
    try:
        claims = _claims(code)
    except (IndexError, KeyError, TypeError, ValueError) as error:  # malformed: ops short of operands
        raise Refused(f"its tensor file holds a malformed pickle ({brief(str(error))})") from None
    if len({claim.key for claim in claims.values()}) != len(claims):
        raise Refused("its tensor file uses the same bytes for two tensors")
    for name, claim in claims.items():
        held = len(members.get(f"data/{claim.key}", b""))
        if held != claim.numel * claim.dtype.itemsize:
            raise Refused(f"its tensor file claims {claim.numel} numbers for {brief(name)!r} and holds {held} bytes")
    wanted = {"data.pkl", *_NOTES, *(f"data/{claim.key}" for claim in claims.values())}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in wanted & set(members):
            archive.writestr(f"archive/{name}", members[name])
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)


def _members(data: bytes) -> dict[str, bytes]:
    """The files in the archive by name, without the folder that holds them all."""
    # Every entry of a zip directory begins with this signature: counted before zipfile builds objects for them.
    if not data.startswith(b"PK\x03\x04") or data.count(b"PK\x01\x02") > MAX_TENSORS + 16:
        raise Refused("its tensor file is no archive that torch.save wrote")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(e.compress_type or e.file_size != e.compress_size for e in entries):
                raise Refused("its tensor file is compressed, which torch.save never does")
            if sum(e.file_size for e in entries) > len(data):
                raise Refused("its tensor file is larger unpacked than packed")
            found = {e.filename.partition("/")[2]: archive.read(e) for e in entries}
    except Refused:
        raise
    except Exception as error:  # zipfile raises nearly anything on a damaged archive
        raise Refused(f"its tensor file is a damaged archive ({type(error).__name__}: {brief(str(error))})") from None
    if len(found) != len(entries):
        raise Refused("its tensor file holds two entries of one name")
    for name, allowed in _NOTES.items():
        if name in found and found[name] not in allowed:
            raise Refused(f"its tensor file has the {name} {brief(found[name])}, which torch.save never writes")
    return found


def _claims(code: bytes) -> dict[str, _Storage]:
    """What a pickle would build, read off its instructions; nothing is imported, called or allocated."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def popped(count: int) -> tuple[Any, ...]:
        if count > len(stack) or count < 0:
            raise ValueError("an instruction lacks its operands")
        taken = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return taken

    for instruction, argument, _ in pickletools.genops(code):
        match instruction.name:
            case "PROTO":
                pass
            case "STOP":
                break
            case "MARK":
                marks.append(len(stack))
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2":
                stack.append(argument)
            case "NEWFALSE":
                stack.append(False)
            case "GLOBAL" if argument in (_REBUILD, _ORDERED) or argument in _STORAGES:
                stack.append(_Global(argument))
            case "GLOBAL":
                raise Refused(
                    f"its tensor file asks Python for {brief(argument)!r}, which no vector needs: "
                    "it may be meant to run code",
                    "delete it and do not open it in another way",
                )
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1":
                stack.append(popped(1))
            case "TUPLE":
                stack.append(popped(len(stack) - marks.pop()))
            case "EMPTY_DICT":
                stack.append({})
            case "BINPERSID":
                stack.append(_storage(*popped(1)))
            case "REDUCE":
                stack.append(_called(*popped(2)))
            case "SETITEM":
                _set(stack, popped(2))
            case "SETITEMS":
                _set(stack, popped(len(stack) - marks.pop()))
            case other:
                raise Refused(f"its tensor file holds the pickle instruction {other}, which no dict of tensors needs")
    if len(stack) != 1 or not isinstance(stack[0], dict) or not all(isinstance(v, _Storage) for v in stack[0].values()):
        raise Refused("its tensor file holds something else than tensors by name")
    return stack[0]


def _storage(identity: Any) -> _Storage:
    match identity:
        case ("storage", _Global(name), str(key), "cpu", int(numel)) if name in _STORAGES and numel > 0:
            return _Storage(key, _STORAGES[name], numel)
    raise Refused(f"its tensor file describes its bytes as {brief(identity)}")


def _called(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Global(name), () if name == _ORDERED:
            return {}
        case _Global(name), (_Storage() as storage, 0, (int(width),), (1,), False, {}) if name == _REBUILD:
            if width == storage.numel:
                return storage
    raise Refused("its tensor file holds a tensor that is not 1-D, or a view of something larger or smaller")


def _set(stack: list[Any], items: tuple[Any, ...]) -> None:
    names = items[::2]
    if len(items) % 2 or not isinstance(stack[-1], dict) or not all(isinstance(name, str) for name in names):
        raise Refused("its tensor file holds something else than tensors by name")
    stack[-1].update(zip(names, items[1::2], strict=True))
