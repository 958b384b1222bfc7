"""The vectors that a server offers: the files of one folder, by their names, and nothing else on the disk."""

import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from steerfn._errors import FileError, SteerError
from steerfn._fingerprint import check_match
from steerfn._io import FORMATS, load
from steerfn._io_document import compose, tensors_of
from steerfn._vector import SteeringVector
from steerfn.serving._refused import RequestError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Served(NamedTuple):
    """A vector with its hash, which is that of its file's contents."""

    vector: SteeringVector
    sha256: str


class Shelf:
    """A folder of vectors, read when they are asked for and again when they change.

    A name is looked up among the folder's files; it is never made into a path. Links that lead out of the folder are
    not offered.

    Args:
        folder: where the vector files are; None offers none.
        model: what they must fit.
    """

    def __init__(self, folder: Any, model: Any) -> None:
        self.folder = None if folder is None else Path(folder).resolve()
        if self.folder is not None and not self.folder.is_dir():
            raise FileError(f"The folder of vectors '{folder}' does not exist; make it, or pass another.")
        self.model = model
        self._known: dict[str, tuple[tuple[str, int, int], Served]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """What is offered."""
        return sorted(self._files())

    def get(self, name: str) -> Served:
        """A vector by its name.

        Raises:
            RequestError: there is none, or its file cannot be served.
        """
        path = self._files().get(name)
        if path is None:
            offered = ", ".join(self.names()[:10]) or "none"
            raise RequestError(
                f"There is no vector {name!r:.140}; this server has {offered}.", 404, "steering", "unknown_vector"
            )
        with self._lock:
            try:
                status = path.stat()
                stamp = (path.name, status.st_mtime_ns, status.st_size)
                if name not in self._known or self._known[name][0] != stamp:
                    vector = load(path)
                    check_match(vector, self.model, strict=True)
                    digest = str(compose(vector, tensors_of(vector))["sha256"])
                    # It was checked: operators need not check again, nor warn.
                    self._known[name] = stamp, Served(vector.with_metadata(model=None), digest)
            except (SteerError, OSError) as error:
                raise RequestError(
                    f"The vector {name!r} cannot be served: {error}".replace(str(self.folder), "the folder"),
                    409,
                    "steering",
                    "unusable_vector",
                ) from None
            return self._known[name][1]

    def _files(self) -> dict[str, Path]:
        if self.folder is None:
            return {}
        found: dict[str, Path] = {}
        for path in sorted(self.folder.iterdir()):
            if path.suffix.lower() not in FORMATS or NAME.fullmatch(path.stem) is None:
                continue
            inside = path.resolve()
            if inside.is_file() and inside.is_relative_to(self.folder):
                found.setdefault(path.stem, inside)
        return found
