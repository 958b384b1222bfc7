"""`.json` with a `.pt` beside it: a document to read, and its tensors.

The JSON names the tensor file by its basename and SHA-256, and that is all it can say of where the
tensors are: a path would let a shared file point anywhere on the reader's disk.

The name of the tensor file holds a part of its hash, so that several writers of one vector never write
the same file with different bytes: the last JSON to be put in place has its own tensors beside it. What
earlier JSONs named goes when it is older than `YOUNG`, since a writer may be about to name a younger one.

The `.pt` files that `torch.save` writes, read without trusting them: ours beside a `.json`, and those of others.

A `.pt` file is a zip archive of a pickle and of one file of bytes for each storage. `weights_only=True`
keeps a pickle from running code, but not from asking for any amount of memory (`bytearray(10**12)`, an
expanded view of one number, a list of itself). So `torch.load` sees a file only after three checks:

1. the archive is uncompressed and no larger inside than outside (no zip bomb);
2. the pickle, followed instruction by instruction without running any, builds plain containers of tensors,
   each a view of no more numbers than its storage has;
3. each of those byte files has the size that the pickle claims (torch 2.13 checks this too).

What passes is written anew and read from there: two zip readers may see two archives in one file.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import pickletools
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from steerfn.values._vector import SteeringVector
from steerfn.values.files._atomic import remove_old
from steerfn.values.files._document import (
    MAX_BYTES,
    MAX_DOCUMENT,
    MAX_TENSORS,
    Read,
    Refused,
    assemble,
    brief,
    compose,
    parse_json,
    tensors_of,
    verify,
)

YOUNG = 60.0
"""Seconds in which a writer has long named the tensor file that it wrote."""
ATTEMPTS = 20
"""Times that a pair is read while others write it."""


def encode(vector: SteeringVector, path: Path) -> dict[Path, bytes]:
    """The two files of a vector, the tensors first: a document never describes what is not there."""
    tensors = tensors_of(vector)
    data = encode_tensors(tensors)
    digest = hashlib.sha256(data).hexdigest()
    beside = path.with_name(f"{path.stem}.{digest[:16]}.pt")
    document = compose(vector, tensors, tensors={"file": beside.name, "sha256": digest})
    return {beside: data, path: (json.dumps(document, indent=2) + "\n").encode()}


def remove_former(path: Path, written: Collection[Path]) -> None:
    """Remove the tensor files of what was saved under this name before."""
    ours = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{16}\.pt")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            former = path.with_name(entry.name)
            if ours.fullmatch(entry.name) and former not in written:
                remove_old(former, YOUNG)


def decode(path: Path, read: Read) -> tuple[SteeringVector, dict[str, Any]]:
    """The vector and the document in a pair of files."""
    for _ in range(ATTEMPTS):
        text = read(path, MAX_DOCUMENT)
        try:
            return _pair(path, text, read)
        except Refused:
            if read(path, MAX_DOCUMENT) == text:  # else a writer put another document in place meanwhile
                raise
    raise Refused("it was replaced while it was read, again and again", "try again when nothing writes it")


def _pair(path: Path, text: bytes, read: Read) -> tuple[SteeringVector, dict[str, Any]]:
    document = verify(parse_json(text))
    match document.get("tensors"):
        case {"file": str(name), "sha256": str(digest)}:
            pass
        case _:
            raise Refused("the entry 'tensors' of its document is missing or of the wrong type")
    # As Windows reads a name: the separators of both systems and drive letters count.
    if PureWindowsPath(name).name != name or not name.endswith(".pt") or "\0" in name:
        raise Refused(
            f"it names {brief(name)!r} as its tensor file", "name a .pt file in the same folder, without a path"
        )
    try:
        data = read(path.with_name(name), MAX_BYTES)
    except FileNotFoundError:
        raise Refused(f"its tensor file {brief(name)!r} is not beside it", "keep the two files together") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise Refused(f"its tensor file {brief(name)!r} was changed or replaced (the SHA-256 does not match)")
    return assemble(document, decode_tensors(data)), document


MAX_DEPTH = 8
"""Deepest nesting of containers in a file of another library."""
MAX_THINGS = 20 * MAX_TENSORS
"""Most tensors, numbers and containers in one: a direction may be a list of numbers."""
MAX_INSTRUCTIONS = 40 * MAX_TENSORS
"""Most instructions of a pickle; a tensor takes about 25."""
MAX_SHARED = 64
"""How many times the file's size its tensors may have in all: layers may share one direction."""

_REBUILD = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED = "collections OrderedDict"
_STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
}
_PLACES = re.compile(r"cpu|(cuda|mps|xpu)(:\d{1,3})?")
_NOTES = {"version": (b"3\n",), "byteorder": (b"little", b"big")}


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor as a pickle describes it; `plain` where it asks for no gradient."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    plain: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    @property
    def whole(self) -> bool:
        return self.plain and (self.offset, self.size, self.stride) == (0, (self.storage.numel,), (1,))


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a `.pt` file."""
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer, pickle_protocol=2)  # the one protocol that `_claims` reads
    return buffer.getvalue()


def decode_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a `.pt` file that holds 1-D tensors by name and nothing else."""
    members = _members(data)
    claims = _claims(members)
    if not isinstance(claims, dict) or not all(type(k) is str and isinstance(v, _View) for k, v in claims.items()):
        raise Refused("its tensor file holds something other than tensors by name")
    for view in claims.values():
        if not view.whole:
            raise Refused("its tensor file holds a tensor that is not plain and 1-D, or a view of something larger")
    if len({view.storage.key for view in claims.values()}) != len(claims):
        raise Refused("its tensor file uses the same bytes for two tensors")
    return _load_checked(members, list(claims.values()))


def decode_any(data: bytes) -> Any:
    """The contents of another library's `.pt` file: tensors, numbers and text in lists, tuples and dicts.

    Raises:
        Refused: anything else, containers that hold themselves, or tensors of more numbers than the file has.
    """
    members = _members(data)
    views = _views(_claims(members))
    if sum(view.nbytes for view in views) > MAX_SHARED * len(data):
        raise Refused(f"its tensor file holds views of more than {MAX_SHARED} times its bytes")
    return _load_checked(members, views)


def _views(tree: Any) -> list[_View]:
    """The tensors in a structure, which a hostile pickle may have tied to itself."""
    views, left, seen = [], [(tree, 0)], 0
    while left:
        node, depth = left.pop()
        seen += 1
        if seen > MAX_THINGS or depth > MAX_DEPTH:
            raise Refused(f"its tensor file nests deeper than {MAX_DEPTH} or holds more than {MAX_THINGS} things")
        if isinstance(node, _View):
            views.append(node)
        elif isinstance(node, (_Global, _Storage)):
            raise Refused("its tensor file holds something other than tensors in plain containers")
        elif isinstance(node, (list, tuple, dict)):
            if len(node) > MAX_TENSORS:
                raise Refused(f"its tensor file holds {len(node)} things, more than {MAX_TENSORS}")
            left += [(each, depth + 1) for each in (node.values() if isinstance(node, dict) else node)]
    if len(views) > MAX_TENSORS:
        raise Refused(f"its tensor file holds {len(views)} tensors, more than {MAX_TENSORS}")
    return views


def _load_checked(members: Mapping[str, bytes], views: list[_View]) -> Any:
    """Load the checked pickle and the bytes that its tensors use with `torch.load`."""
    storages = {view.storage for view in views}
    if len({storage.key for storage in storages}) != len(storages):
        raise Refused("its tensor file describes the same bytes in two ways")
    for storage in storages:
        held = len(members.get(f"data/{storage.key}", b""))
        if held != storage.nbytes:
            raise Refused(
                f"its tensor file claims {storage.numel} numbers for the bytes {brief(storage.key)!r} and holds "
                f"{held} bytes"
            )
    wanted = {"data.pkl", *_NOTES, *(f"data/{storage.key}" for storage in storages)}
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
        raise Refused("its tensor file is not an archive that torch.save wrote")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(e.compress_type or e.file_size != e.compress_size for e in entries):
                raise Refused("its tensor file is compressed, which torch.save never does")
            if sum(e.file_size for e in entries) > len(data):
                raise Refused("its tensor file is larger unpacked than packed")
            members = {e.filename.partition("/")[2]: archive.read(e) for e in entries}
    except Refused:
        raise
    except Exception as error:  # zipfile raises nearly anything on a damaged archive
        raise Refused(f"its tensor file is a damaged archive ({type(error).__name__}: {brief(str(error))})") from None
    if len(members) != len(entries):
        raise Refused("its tensor file holds two entries of one name")
    for name, allowed in _NOTES.items():
        if name in members and members[name] not in allowed:
            raise Refused(f"its tensor file has the {name} {brief(members[name])}, which torch.save never writes")
    return members


def _claims(members: Mapping[str, bytes]) -> Any:
    """The value that the pickle would build, read off its instructions; nothing is imported, called or allocated."""
    code = members.get("data.pkl", b"")
    if not 0 < len(code) <= MAX_DOCUMENT:
        raise Refused(f"its tensor file holds a pickle of {len(code)} bytes")
    try:
        return _interpret(code)
    except (IndexError, KeyError, TypeError, ValueError) as error:  # malformed: ops short of operands
        raise Refused(f"its tensor file holds a malformed pickle ({brief(str(error))})") from None


def _interpret(code: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def pop(count: int) -> tuple[Any, ...]:
        if count > len(stack) or count < 0:
            raise ValueError("an instruction lacks its operands")
        taken = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return taken

    for number, (instruction, argument, _) in enumerate(pickletools.genops(code)):
        if number > MAX_INSTRUCTIONS:
            raise Refused(f"its tensor file holds a pickle of more than {MAX_INSTRUCTIONS} instructions")
        match instruction.name:
            case "PROTO":
                pass
            case "STOP":
                break
            case "MARK":
                marks.append(len(stack))
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NEWFALSE" | "NEWTRUE":
                stack.append(instruction.name == "NEWTRUE")
            case "NONE":
                stack.append(None)
            case "GLOBAL":
                stack.append(_global(str(argument)))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(pop(int(instruction.name[-1])))
            case "TUPLE":
                stack.append(pop(len(stack) - marks.pop()))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                _extend(stack, pop(1))
            case "APPENDS":
                _extend(stack, pop(len(stack) - marks.pop()))
            case "EMPTY_DICT":
                stack.append({})
            case "BINPERSID":
                stack.append(_storage(*pop(1)))
            case "REDUCE":
                stack.append(_interpret_call(*pop(2)))
            case "SETITEM":
                _set(stack, pop(2))
            case "SETITEMS":
                _set(stack, pop(len(stack) - marks.pop()))
            case other:
                raise Refused(f"its tensor file holds the pickle instruction {other}, which no tensors need")
    if len(stack) != 1:
        raise Refused("its tensor file holds something other than tensors by name")
    return stack[0]


def _global(name: str) -> _Global:
    if name in (_REBUILD, _PARAMETER, _ORDERED) or name in _STORAGES:
        return _Global(name)
    if re.fullmatch(r"torch \w+Storage", name):
        raise Refused(f"its tensor file holds numbers of {brief(name)}, and a direction is floating point")
    raise Refused(
        f"its tensor file asks Python for {brief(name)!r}, which no vector needs: it may be meant to run code",
        "do not open it in another way; whoever made it can save its tensors alone with torch.save",
    )


def _storage(identity: Any) -> _Storage:
    match identity:
        case ("storage", _Global(name), str(key), str(place), int(numel)) if name in _STORAGES and numel > 0:
            if _PLACES.fullmatch(place):
                return _Storage(key, _STORAGES[name], numel)
    raise Refused(f"its tensor file describes its bytes as {brief(identity)}")


def _interpret_call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Global(name), () if name == _ORDERED:
            return {}
        case _Global(name), (_View() as view, bool(), dict(hooks)) if name == _PARAMETER and not hooks:
            return dataclasses.replace(view, plain=False)
        case _Global(name), (_Storage() as storage, int(offset), tuple(size), tuple(stride), bool(grad), dict(hooks)):
            if name == _REBUILD and not hooks:
                return _view(storage, offset, size, stride, not grad)
    raise Refused("its tensor file calls a function with arguments that torch.save never writes")


def _view(storage: _Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...], plain: bool) -> _View:
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > MAX_DEPTH or not all(type(n) is int and n >= 0 for n in numbers):
        raise Refused("its tensor file holds a tensor without a size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not 0 < math.prod(size) <= storage.numel or last >= storage.numel:
        raise Refused("its tensor file holds a view of something larger than its bytes, or an empty tensor")
    return _View(storage, offset, size, stride, plain)


def _set(stack: list[Any], items: tuple[Any, ...]) -> None:
    names = items[::2]
    if len(items) % 2 or not isinstance(stack[-1], dict) or not all(type(name) in (str, int) for name in names):
        raise Refused("its tensor file holds something other than tensors by name or number")
    stack[-1].update(zip(names, items[1::2], strict=True))


def _extend(stack: list[Any], items: tuple[Any, ...]) -> None:
    if not isinstance(stack[-1], list):
        raise Refused("its tensor file appends to something other than a list")
    stack[-1].extend(items)
