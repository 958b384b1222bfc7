"""The vectors that a server offers: the files of one folder, by their names, and nothing else on the disk."""

import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from steerfn._errors import FileError, SteerError
from steerfn._fingerprint import check_match, fingerprint, strictest
from steerfn._io import FORMATS, load
from steerfn._io_document import compose, tensors_of
from steerfn._vector import SteeringVector
from steerfn.serving._refused import RequestError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SETTLED = 2_000_000_000
"""Nanoseconds after which a file system's clock tells two changes of a file apart."""


class Served(NamedTuple):
    """A vector with its hash, which is that of its file's contents."""

    vector: SteeringVector
    sha256: str


class Shelf:
    """A folder of vectors, read when they are asked for and again when they change.

    A name is looked up as a file of the folder; what is not a plain name is never made into a path. Links that lead
    out of the folder are not offered, but for those of a snapshot in the hub's cache to the files of its repository.

    Args:
        folder: where the vector files are; None offers none.
        model: what they must fit.
    """

    def __init__(self, folder: Any, model: Any) -> None:
        self.folder = None if folder is None else Path(folder).resolve()
        if self.folder is not None and not self.folder.is_dir():
            raise FileError(f"The folder of vectors '{folder}' does not exist; make it, or pass another.")
        self.model = model
        self._has_weights = fingerprint(model, weights=True)["weights"] is not None  # vLLM's have other names
        self._roots = [] if self.folder is None else [self.folder, *_blobs(self.folder)]
        self._known: dict[str, tuple[tuple[Any, ...], Served]] = {}

    def names(self) -> list[str]:
        """What is offered."""
        return self.listing()[0]

    def listing(self) -> tuple[list[str], dict[str, str]]:
        """The names that are offered, and the files that are passed over, each with the reason."""
        names: set[str] = set()
        passed: dict[str, str] = {}
        files = [] if self.folder is None else sorted(self.folder.iterdir())
        documents = any(path.suffix == ".json" for path in files)
        for path in files:
            if path.suffix == ".pt" and documents:  # the tensors of one
                continue
            if reason := self._reason(path):
                passed[path.name] = reason
            else:
                names.add(path.stem)
        return sorted(names), passed

    def get(self, name: str) -> Served:
        """A vector by its name.

        Raises:
            RequestError: there is none, or its file cannot be served.
        """
        path = self._path(name)
        try:
            status = path.stat()
            stamp = (path.name, status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
            known = self._known.get(name)
            if known is not None and known[0] == stamp:
                return known[1]
            vector = load(path)
            check_match(vector, self.model, strict=strictest(vector, weights=self._has_weights))
            digest = str(compose(vector, tensors_of(vector))["sha256"])
        except (SteerError, OSError) as error:
            raise RequestError(
                f"The vector {name!r} cannot be served: {error}".replace(str(self.folder), "the folder"),
                409,
                "steering",
                "unusable_vector",
            ) from None
        # It was checked: operators need not check again, nor warn.
        served = Served(vector.with_metadata(model=None), digest)
        if time.time_ns() - status.st_ctime_ns > SETTLED:  # else a change could leave the stamp as it is
            self._known[name] = stamp, served
        return served

    def _path(self, name: str) -> Path:
        """The one file of a name, without a look at the others."""
        found = []
        if self.folder is not None and NAME.fullmatch(name):
            files = [self.folder / f"{name}{suffix}" for suffix in FORMATS]
            found = [path for path in files if path.is_file() and self._reason(path) is None]
        if not found:
            offered = self._list_names()
            some = ", ".join(offered[:10]) + (" and more" if len(offered) > 10 else "") or "none"
            raise RequestError(
                f"There is no vector {name!r:.140}; this server has {some}.", 404, "steering", "unknown_vector"
            )
        if len(found) > 1:
            raise RequestError(
                f"The name {name!r} is ambiguous: the folder has {' and '.join(path.name for path in found)}; rename "
                "or remove all but one.",
                409,
                "steering",
                "ambiguous_vector",
            )
        return found[0]

    def _list_names(self) -> list[str]:
        """Names for a message: by the files' names alone, since anyone can ask for a vector that is not there."""
        files = () if self.folder is None else self.folder.iterdir()
        return sorted({path.stem for path in files if path.suffix in FORMATS and NAME.fullmatch(path.stem)})

    def _reason(self, path: Path) -> str | None:
        """Why a file is not offered; None where it is."""
        if path.suffix not in FORMATS:
            return f"not a vector file: a name ends in {', '.join(FORMATS)}"
        if NAME.fullmatch(path.stem) is None:
            return "its name has other characters than A-Z, a-z, 0-9, '.', '_' and '-', or is too long"
        try:
            inside = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, on Python 3.12 and older
            return "a link that leads nowhere"
        if not any(inside.is_relative_to(root) for root in self._roots):
            return "a link that leads out of the folder"
        return None if inside.is_file() else "not a regular file"


def _blobs(folder: Path) -> list[Path]:
    """Where the links of a snapshot in the hub's cache lead: models--org--name/{snapshots/<revision>/..., blobs}."""
    for above in (folder, *folder.parents):
        blobs = above.parent.parent / "blobs"
        if above.parent.name == "snapshots" and "--" in above.parent.parent.name and blobs.is_dir():
            return [blobs.resolve()]
    return []
