"""The header of a GGUF file, walked with every count, length and offset held against the bytes that are there.

    "GGUF", version, number of tensors, number of fields
    fields   key, type, value         values may be arrays, of arrays too
    tensors  name, sizes, type, offset from the aligned end of the header
    the rest the tensors' bytes

The reader of the gguf package believes what a header claims and builds an object for every element of an array, so 49
bytes can ask it for all memory there is. Here an array of numbers is one step, and nothing is allocated for a claim.
"""

import struct
from typing import NamedTuple

import numpy as np

from steerfn.values.files._document import MAX_DOCUMENT, MAX_TENSORS, Refused, brief

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""The bytes of a number, by GGUF's type."""
UINT32, STRING, ARRAY = 4, 8, 9
FLOATS = {0: "<f4", 1: "<f2"}
"""The types of tensors that can hold a direction."""
MAX_VALUES = 100_000
"""Most fields, strings in arrays and arrays in arrays: a control vector has a handful."""
MAX_DEPTH = 8
"""Deepest nesting of arrays."""


class Tensor(NamedTuple):
    """A tensor as its header describes it; its values where they are floats, a view of the file's bytes."""

    name: str
    sizes: tuple[int, ...]
    values: np.ndarray | None


class Header(NamedTuple):
    """The fields that hold text, by name, and the tensors in the order of the file."""

    texts: dict[str, str]
    tensors: list[Tensor]


def read_header(data: bytes) -> Header:
    """The contents of a GGUF file, once its header accounts for its bytes.

    Raises:
        Refused: a header that claims more than the file has, or that no control vector needs.
    """
    return _Walk(data).header()


class _Walk:
    """A position in a file that never passes its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.left = data, 0, MAX_VALUES

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self.skip(size)
        return self.data[self.at - size : self.at]

    def skip(self, size: int) -> None:
        """Pass over bytes that are there."""
        if size > len(self.data) - self.at:
            raise Refused(f"its header claims {size} bytes at byte {self.at} of {len(self.data)}")
        self.at += size

    def number(self, form: str) -> int:
        """The next whole number."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """The next string."""
        size = self.number("Q")
        if size > MAX_DOCUMENT:
            raise Refused(f"its header claims a text of {size} bytes, more than {MAX_DOCUMENT}")
        return self.take(size).decode("utf-8", "replace")

    def count(self, least: int) -> int:
        """The next count, of things that take so many bytes at least."""
        count = self.number("Q")
        if count * least > len(self.data) - self.at:
            raise Refused(f"its header claims {count} entries and {len(self.data) - self.at} bytes follow")
        return count

    def header(self) -> Header:
        """The whole header, from the first byte."""
        if self.take(4) != b"GGUF":
            raise Refused(
                "it is not a GGUF file (it does not begin with 'GGUF')", "load a file that sf.save or repeng wrote"
            )
        version = self.number("I")
        if version not in (2, 3):
            raise Refused(f"it has GGUF version {version}, and 2 and 3 are read, in little-endian order")
        tensors, fields = self.count(24), self.count(13)
        if tensors > MAX_TENSORS:
            raise Refused(f"it holds {tensors} tensors, more than {MAX_TENSORS}")
        texts: dict[str, str] = {}
        alignment = 32
        for _ in range(fields):
            key, kind = self.text(), self.number("I")
            if kind == STRING:
                self.spend(1)
                if key in texts:
                    raise Refused(f"its header repeats the field {brief(key)!r}")
                texts[key] = self.text()
            elif kind == UINT32 and key == "general.alignment":
                alignment = self.number("I")
            else:
                self.value(kind, 0)
        if alignment < 1 or alignment & (alignment - 1):
            raise Refused(f"its alignment is {alignment}, and a power of two is needed")
        claims = [self.claim() for _ in range(tensors)]
        start = self.at + -self.at % alignment
        return Header(texts, self.tensors(claims, start))

    def spend(self, values: int) -> None:
        """Count values that take a step each."""
        self.left -= values
        if self.left < 0:
            raise Refused(f"its header holds more than {MAX_VALUES} values, and a control vector needs a handful")

    def value(self, kind: int, depth: int) -> None:
        """Pass over a value of a field."""
        self.spend(1)
        if kind in SIZES:
            self.skip(SIZES[kind])
        elif kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY and depth < MAX_DEPTH:
            each = self.number("I")
            count = self.count(SIZES.get(each, 8))
            if each in SIZES:
                self.skip(count * SIZES[each])
            else:
                for _ in range(count):
                    self.value(each, depth + 1)
        else:
            raise Refused(f"its header holds a value of type {kind}" + (" nested too deeply" if depth else ""))

    def claim(self) -> tuple[str, tuple[int, ...], int, int]:
        """The header's entry for one tensor: name, sizes, type, offset."""
        name, dimensions = self.text(), self.number("I")
        if dimensions > 4:
            raise Refused(f"its header gives {brief(name)!r} {dimensions} dimensions, and 4 is the most")
        sizes = tuple(self.number("Q") for _ in range(dimensions))
        return name, sizes, self.number("I"), self.number("Q")

    def tensors(self, claims: list[tuple[str, tuple[int, ...], int, int]], start: int) -> list[Tensor]:
        """The tensors, once the bytes of each are its own."""
        held, taken = [], []
        for name, sizes, kind, offset in claims:
            values = None
            if kind in FLOATS and len(sizes) == 1:
                begin, form = start + offset, np.dtype(FLOATS[kind])
                end = begin + sizes[0] * form.itemsize
                if not 0 < sizes[0] or end > len(self.data):
                    raise Refused(f"its header claims bytes {begin} to {end} of {len(self.data)} for {brief(name)!r}")
                taken.append((begin, end))
                values = np.frombuffer(self.data, form, sizes[0], begin)
            held.append(Tensor(name, sizes, values))
        taken.sort()
        if any(later < end for (_, end), (later, _) in zip(taken, taken[1:], strict=False)):
            raise Refused("its header gives two tensors the same bytes")
        return held
