"""A sweep that was interrupted: what it had found, in a file of JSON that the same call goes on from."""

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from steerfn._errors import FileError
from steerfn._io_document import MAX_BYTES, Refused, brief, parse_json
from steerfn._io_read import check_size, read_bytes
from steerfn._io_write import write_together

FORMAT, INTERVAL = "steerfn sweep", 5.0
"""Seconds between two writes."""


class Partial:
    """What a sweep has found so far, by key, kept in a file where one is named.

    Args:
        path: the file, of 256 MiB at most; None keeps nothing.
        identity: what determines the sweep, as a JSON value; a file of another sweep is refused.

    Raises:
        FileError: a file that is not the same sweep's, is damaged, or cannot be written.
    """

    def __init__(self, path: Any, identity: Any) -> None:
        try:
            self.path = None if path is None else Path(path)
        except TypeError:
            raise FileError(
                f"A checkpoint is named by text or a Path, not by {brief(path)} of type {type(path).__name__}."
            ) from None
        text = json.dumps(identity, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self.found: dict[str, Any] = {}
        self.written = time.monotonic()
        if self.path is not None and not self.path.parent.is_dir():
            raise FileError(f"The checkpoint {self.path} cannot be written: there is no folder {self.path.parent}.")
        if self.path is not None and self.path.exists():
            self.found = self._read(self.path)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            document = parse_json(read_bytes(path, MAX_BYTES, "name another file"))
        except Refused as refused:
            raise FileError(
                f"The checkpoint {path} cannot be read: {refused.what}; delete it to begin anew, or name another file."
            ) from None
        except (OSError, ValueError) as error:
            raise FileError(f"The checkpoint {path} cannot be read: {error}; delete it to begin anew.") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FileError(f"{path} is not the checkpoint of a sweep; name another file.")
        if document.get("identity") != self.digest:
            raise FileError(
                f"The checkpoint {path} belongs to another sweep (other model, prompts, vectors or options); name "
                "another file, or delete it to begin anew."
            )
        found = document.get("found")
        if not isinstance(found, dict) or document.get("sha256") != _checksum(found):
            raise FileError(
                f"The checkpoint {path} was changed since it was written (the SHA-256 does not match); delete it to "
                "begin anew."
            )
        return found

    def add(self, found: dict[str, Any]) -> None:
        """Keep more; the file is written every few seconds."""
        self.found.update(found)
        if time.monotonic() - self.written >= INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the file now."""
        self.written = time.monotonic()
        if self.path is not None and self.found:
            checksum = _checksum(self.found)
            document = {"format": FORMAT, "identity": self.digest, "sha256": checksum, "found": self.found}
            try:
                data = json.dumps(document).encode()
                check_size(len(data), MAX_BYTES)
                write_together({self.path: data})
            except Refused as refused:
                raise FileError(
                    f"The checkpoint {self.path} cannot be written: {refused.what}; sweep fewer prompts or "
                    "configurations in one call, or leave checkpoint out."
                ) from None
            except (OSError, ValueError) as error:
                raise FileError(f"The checkpoint {self.path} cannot be written: {error}.") from None

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            with contextlib.suppress(FileError):  # what stopped the sweep is the error to see
                self.write()
        elif self.path is not None:
            self.path.unlink(missing_ok=True)


def _checksum(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
