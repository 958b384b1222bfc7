"""Checkpoints: a file that holds how far a run has come, so that the same call goes on from there."""

import abc
import json
import time
from collections.abc import Callable
from typing import Any, NoReturn

from typing_extensions import Self

from steerfn.values import FileError, json_sha256, warn
from steerfn.values.files import (
    MAX_BYTES,
    Refused,
    brief,
    check_output,
    check_size,
    parse_json,
    read_bytes,
    write_together,
)

FORMAT, INTERVAL = "steerfn sweep", 5.0
"""Seconds between two writes."""
PATIENCE = 10
"""And this many times as long as the last write took, so that large states do not spend their time on the disk."""


class ProgressFile(abc.ABC):
    """A file that is written as a run goes on, and when it is interrupted in any way but by a kill.

    It is the context in which the run takes place, and is deleted at its end, when the run is over.

    Args:
        path: the file; None keeps nothing.

    Raises:
        FileError: something that names no file, or a place that cannot be written.
    """

    def __init__(self, path: Any) -> None:
        self.path = None if path is None else check_output(path, "The checkpoint")
        self._due, self._pending = time.monotonic() + INTERVAL, False

    @abc.abstractmethod
    def _data(self) -> bytes:
        """The bytes of the file."""

    def update(self) -> None:
        """There is more to keep; the file is written every few seconds."""
        self._pending = True
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write the file now, where it lacks anything.

        Raises:
            FileError: the file system refuses.
        """
        if self.path is None or not self._pending:
            return
        begun, data = time.monotonic(), self._data()
        try:
            write_together({self.path: data})
        except (OSError, ValueError) as error:
            raise FileError(
                f"The checkpoint cannot be written to '{self.path}': {getattr(error, 'strerror', None) or error}; what "
                "was there before is unchanged."
            ) from None
        now = time.monotonic()
        self._due, self._pending = now + max(INTERVAL, PATIENCE * (now - begun)), False

    def _refuse(self, what: str) -> NoReturn:
        raise FileError(
            f"Cannot continue from the checkpoint '{self.path}': {what}; delete it to begin anew, or choose another "
            "path."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            if self.path is not None:
                self.path.unlink(missing_ok=True)
            return
        try:
            self.write()
        except FileError as error:  # what stopped the run is the error to see
            if not issubclass(kind, FileError):
                warn(f"The run was interrupted, and what it read last is lost: {error}")


def is_text(key: str, value: Any) -> bool:
    """Whether a value is what generating keeps."""
    return isinstance(value, str)


class Partial(ProgressFile):
    """The partial results of a sweep, by key, kept as JSON in a file where one is named.

    Args:
        path: the file, of 256 MiB at most; None keeps nothing.
        identity: what determines the sweep, as a JSON value; a file of another sweep is refused.
        fits: whether a value is of the kind that the sweep keeps under a key: who writes a file writes its checksum.

    Raises:
        FileError: a file that is not the same sweep's, is damaged, or cannot be written.
    """

    def __init__(self, path: Any, identity: Any, fits: Callable[[str, Any], bool] = is_text) -> None:
        super().__init__(path)
        self.digest = json_sha256(identity)
        self.results: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            self.results = self._read(fits)

    def _read(self, fits: Callable[[str, Any], bool]) -> dict[str, Any]:
        assert self.path is not None
        try:
            document = parse_json(read_bytes(self.path, MAX_BYTES))
        except Refused as refused:
            self._refuse(refused.what)
        except (OSError, ValueError) as error:
            self._refuse(f"it cannot be read ({error})")
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FileError(f"{self.path} is not the checkpoint of a sweep; name another file.")
        if document.get("identity") != self.digest:
            self._refuse("it belongs to another sweep (other model, prompts, vectors or options)")
        results = document.get("found")
        if not isinstance(results, dict) or document.get("sha256") != json_sha256(results):
            self._refuse("it was changed since it was written (the SHA-256 does not match)")
        if strange := [key for key, value in results.items() if not fits(key, value)]:
            self._refuse(
                f"it holds {brief(results[strange[0]])} under {brief(strange[0])!r}, which no sweep writes there"
            )
        return results

    def add(self, results: dict[str, Any]) -> None:
        """Keep more."""
        self.results.update(results)
        self.update()

    def _data(self) -> bytes:
        sha256 = json_sha256(self.results)
        data = json.dumps({"format": FORMAT, "identity": self.digest, "sha256": sha256, "found": self.results}).encode()
        try:
            check_size(len(data), MAX_BYTES)
        except Refused as refused:
            raise FileError(
                f"The checkpoint cannot be written to '{self.path}': {refused.what}; sweep fewer prompts or "
                "configurations in one call, or leave checkpoint out."
            ) from None
        return data
