"""Vectors that come and go while the server runs: a file is checked whole before anything in the folder changes.

Requests that run keep the vector that they began with, since it is in memory; the next one gets what is there then.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from steerfn.operators import add
from steerfn.serving._jobs import Reader
from steerfn.serving._request_error import RequestError
from steerfn.serving._vectors import NAME, Served, Shelf
from steerfn.values import SteerError, SteeringVector
from steerfn.values.files import FORMATS, load, load_bytes, remove, vector_sha256, write_together
from steerfn.verbs import prepare_operator

SUFFIX = ".safetensors"
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, whatever comes after a dot."""


class Change(NamedTuple):
    """One change: a vector that is added, replaced or removed.

    Attributes:
        action: "add", "replace" or "remove".
        name: of the vector.
        before: the SHA-256 of the vector that was there; None for a new name, or a damaged file.
        after: that of the vector that is there now; None after a removal.
    """

    action: str
    name: str
    before: str | None
    after: str | None

    @property
    def status(self) -> int:
        """The HTTP status of its answer."""
        return 201 if self.action == "add" else 200


class Changes:
    """Adds, replaces and removes the vectors of a server's folder, one at a time.

    Args:
        shelf: the vectors.
        reader: which applies them to the model, and knows the default steering.
        patience: seconds to wait for the changes of others.
    """

    def __init__(self, shelf: Shelf, reader: Reader, patience: float) -> None:
        self.shelf, self.reader, self.patience = shelf, reader, patience
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes, on_change: Callable[[Change], Any]) -> tuple[Change, Served]:
        """Add a vector, or replace the one of its name.

        Args:
            name: the vector's.
            data: the bytes of a `.safetensors` file, from anyone.
            on_change: called when the file is on the disk and not in place; what it raises leaves all as it was.

        Raises:
            RequestError: a name that is not safe or taken otherwise, a file that cannot be served, a vector of the
                default steering, or a disk that refuses.
        """
        folder = self._folder()
        _check_name(name)
        vector = self._read(name, data)
        after, target = vector_sha256(vector), folder / f"{name}{SUFFIX}"
        with self._turn():
            there = self._is_there(target)
            before = _sha256(target) if there else None
            self._check_default(name, before, after)
            change = Change("replace" if there else "add", name, before, after)
            write_together({target: data}, ready=lambda: on_change(change))
        return change, Served(vector, after)

    def remove(self, name: str, on_change: Callable[[Change], Any]) -> Change:
        """Remove a vector, of any format.

        Args:
            name: the vector's.
            on_change: called before it is removed; what it raises leaves it there.

        Raises:
            RequestError: no such vector, one of the default steering, or a disk that refuses.
        """
        self._folder()
        with self._turn():
            path = self.shelf.path(name)
            change = Change("remove", name, _sha256(path), None)
            self._check_default(name, change.before, None)
            on_change(change)
            remove(path)
            self.shelf.forget(name)
        return change

    def _folder(self) -> Path:
        if self.shelf.folder is None:
            raise RequestError(
                "This server has no folder of vectors to change; start it with --vectors FOLDER.", 409, code="no_folder"
            )
        return self.shelf.folder

    def _read(self, name: str, data: bytes) -> SteeringVector:
        try:
            vector = load_bytes(data, f"{name}{SUFFIX}")
            self.shelf.check(vector)
            prepare_operator(add(vector), self.reader.root, self.reader.layout)
        except SteerError as error:
            raise RequestError(f"The vector {name!r} was not taken: {error}", code="unusable_vector") from None
        return vector

    def _is_there(self, target: Path) -> bool:
        """Whether an upload replaces a file.

        Raises:
            RequestError: another file has its name, or would have on a disk that takes capitals for small letters.
        """
        for path in target.parent.iterdir():
            is_vector = path.suffix.lower() in FORMATS and path.stem.casefold() == target.stem.casefold()
            if is_vector and path.name != target.name:
                raise RequestError(
                    f"The folder has {path.name!r}, and {target.name!r} beside it would be ambiguous; remove that "
                    "vector first, or take another name.",
                    409,
                    code="ambiguous_vector",
                )
        if not os.path.lexists(target):
            return False
        if reason := self.shelf.reason(target):
            raise RequestError(
                f"The folder has something named {target.name!r} that is not offered ({reason}); take another name.",
                409,
                code="ambiguous_vector",
            )
        return True

    def _check_default(self, name: str, before: str | None, after: str | None) -> None:
        named = {one.vector.casefold() for one in self.reader.default}
        if name.casefold() in named and (after is None or after != before):
            raise RequestError(
                f"The vector {name!r} is part of this server's default steering, which is not changed while it runs; "
                "upload another under a new name and start a server whose default names that.",
                409,
                code="default_steering",
            )

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One change after the other; what the disk refuses is told."""
        if not self._lock.acquire(timeout=self.patience):
            raise RequestError(
                f"Another change of vectors was not done after {self.patience:g} s; try again later.", 503, code="busy"
            )
        try:
            yield
        except OSError as error:
            raise RequestError(
                f"The folder of vectors cannot be changed ({error.strerror or error}); what was there is still in use.",
                503,
                code="disk",
            ) from None
        finally:
            self._lock.release()


def _check_name(name: str) -> None:
    """Refuse a name that is not the same plain file name on every system.

    Raises:
        RequestError: such a one.
    """
    ending = Path(name).suffix.lower()
    if NAME.fullmatch(name) is None:
        wrong = "a name begins with a letter or digit, has A-Z, a-z, 0-9, '.', '_' and '-', and at most 128 of them"
    elif DEVICES.fullmatch(name):
        wrong = "Windows keeps it for a device"
    elif name.endswith("."):
        wrong = "a name does not end in a dot"
    elif ending in FORMATS or ending == ".pt":
        wrong = f"a name goes without a suffix of files, so leave {ending} out"
    else:
        return
    raise RequestError(f"A vector cannot be called {name!r:.140}: {wrong}.", code="unsafe_name")


def _sha256(path: Path) -> str | None:
    try:
        return vector_sha256(load(path))
    except SteerError:
        return None  # a damaged file holds no vector
