"""The vectors that a server offers: the files of one folder, by their names, and nothing else on the disk."""

import functools
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from steerfn.serving._request_error import RequestError
from steerfn.values import FileError, SteerError, SteeringVector, check_match, fingerprint, strictest
from steerfn.values.files import FORMATS, load, vector_sha256

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SETTLED = 2_000_000_000
"""Nanoseconds after which a file system's clock tells two changes of a file apart."""


class Served(NamedTuple):
    """A vector with its hash, which is that of its file's contents."""

    vector: SteeringVector
    sha256: str

    def entry(self, name: str) -> dict[str, Any]:
        """How the vector is listed under a name."""
        sites = [site.name for site in self.vector.sites]
        about = {"sha256": self.sha256, "sites": sites, "method": self.vector.metadata.get("method")}
        return {"id": name, "object": "vector", **about}


class Shelf:
    """A folder of vectors, read when they are asked for and again when they change.

    A name is looked up as a file of the folder; what is not a plain name is never made into a path. Links that lead
    out of the folder are not offered, but for those of a snapshot in the hub's cache to the files of its repository.

    Args:
        folder: where the vector files are; None offers none.
        model: what they must fit; None where only names are asked for.
    """

    def __init__(self, folder: Any, model: Any) -> None:
        self.folder = None if folder is None else Path(folder).resolve()
        if self.folder is not None and not self.folder.is_dir():
            raise FileError(f"The folder of vectors '{folder}' does not exist; make it, or pass another.")
        self.model = model
        self._roots = [] if self.folder is None else [self.folder, *_blobs(self.folder)]
        self._known: dict[str, tuple[tuple[Any, ...], Served]] = {}

    @functools.cached_property
    def _has_weights(self) -> bool:
        return fingerprint(self.model, weights=True)["weights"] is not None  # vLLM's have other names

    def names(self) -> list[str]:
        """The names that are offered."""
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
            if reason := self.reason(path):
                passed[path.name] = reason
            else:
                names.add(path.stem)
        return sorted(names), passed

    def get(self, name: str) -> Served:
        """A vector by its name.

        Raises:
            RequestError: no vector has that name, or its file cannot be served.
        """
        path = self.path(name)
        try:
            status = path.stat()
            stamp = (path.name, status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
            known = self._known.get(name)
            if known is not None and known[0] == stamp:
                return known[1]
            vector = load(path)
            self.check(vector)
            digest = vector_sha256(vector)
        except (SteerError, OSError) as error:
            raise RequestError(
                f"The vector {name!r} cannot be served: {error}".replace(str(self.folder), "the folder"),
                409,
                "steering",
                "unusable_vector",
            ) from None
        served = Served(vector, digest)
        if time.time_ns() - status.st_ctime_ns > SETTLED:  # else a change could leave the stamp as it is
            self._known[name] = stamp, served
        return served

    def check(self, vector: SteeringVector) -> None:
        """Refuse a vector that was not made for the model.

        Raises:
            ModelError: such a one.
        """
        check_match(vector, self.model, strict=strictest(vector, weights=self._has_weights))

    def forget(self, name: str) -> None:
        """Let go of a vector that was removed."""
        self._known.pop(name, None)

    def path(self, name: str) -> Path:
        """The one file of a name, without a look at the others.

        Raises:
            RequestError: no file has that name, or several have.
        """
        paths = []
        if self.folder is not None and NAME.fullmatch(name):
            files = [self.folder / f"{name}{suffix}" for suffix in FORMATS]
            paths = [path for path in files if path.is_file() and self.reason(path) is None]
        if not paths:
            offered = self._list_names()
            some = ", ".join(offered[:10]) + (" and more" if len(offered) > 10 else "") or "none"
            raise RequestError(
                f"There is no vector {name!r:.140}; this server has {some}.", 404, "steering", "unknown_vector"
            )
        if len(paths) > 1:
            raise RequestError(
                f"The name {name!r} is ambiguous: the folder has {' and '.join(path.name for path in paths)}; rename "
                "or remove all but one.",
                409,
                "steering",
                "ambiguous_vector",
            )
        return paths[0]

    def _list_names(self) -> list[str]:
        """Names for a message: by the files' names alone, since anyone can ask for a vector that is not there."""
        files = () if self.folder is None else self.folder.iterdir()
        return sorted({path.stem for path in files if path.suffix in FORMATS and NAME.fullmatch(path.stem)})

    def reason(self, path: Path) -> str | None:
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
