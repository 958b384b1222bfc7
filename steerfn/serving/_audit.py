"""The audit log: a line of JSON for every request at its beginning and at its end, and for every change of a vector,
only ever appended.
"""

import datetime
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

from steerfn.values import FileError

APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT


def check_log(path: str | os.PathLike[str]) -> None:
    """Open the log, created if it does not exist, so that a wrong path is refused before a model is loaded.

    Raises:
        FileError: a file that cannot be appended to.
    """
    try:
        os.close(os.open(path, APPENDING, 0o600))
    except OSError as error:
        raise FileError(f"Cannot append to the audit log '{path}': {error.strerror}; name another.") from None


class Audit:
    """Appends whole lines to a file, each flushed to the disk before the request goes on.

    Where a line was cut (a full disk, a crash), the next one begins anew. A file that was moved away or removed, as
    log rotation does, is followed: the next line goes to a new file at the path.

    Args:
        path: the file; None keeps no log.
        prompts: whether prompts are written too. They are not, unless asked for.

    Raises:
        FileError: a file that cannot be appended to.
    """

    def __init__(self, path: Any, prompts: bool = False) -> None:
        self.prompts = prompts
        self._lock = threading.Lock()
        self._path = None if path is None else Path(path)
        self._file: int | None = None
        self._torn = False
        if self._path is not None:
            check_log(self._path)
            self._open(self._path)

    @property
    def is_kept(self) -> bool:
        """Whether there is a log."""
        return self._path is not None

    def write(self, event: str, identifier: str, *, timeout: float = -1, **fields: Any) -> None:
        """One line.

        Args:
            event: "begin", "end", "change" (of a vector) or "refused".
            identifier: of the request.
            timeout: seconds to wait for other lines; -1 waits as long as it takes.
            fields: what it says.

        Raises:
            OSError: the disk refuses, or is too slow: then the request must not go on.
        """
        if self._path is None:
            return
        if not self.prompts:
            fields.pop("prompts", None)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "id": identifier, **fields}, allow_nan=False).encode("ascii")
        if not self._lock.acquire(timeout=timeout):
            raise OSError(errno.ETIMEDOUT, "it is waiting for the disk")
        try:
            self._append(self._open_at(self._path), line + b"\n")
        finally:
            self._lock.release()

    def _append(self, file: int, line: bytes) -> None:
        left = b"\n" + line if self._torn else line
        while left:
            # A disk that is nearly full takes part of a line, and says so only by the count.
            size = os.write(file, left)
            if not size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._torn = left[size - 1 : size] != b"\n"
            left = left[size:]
        os.fsync(file)

    def _open_at(self, path: Path) -> int:
        """The file that is at the path now."""
        if self._file is not None:
            here = os.fstat(self._file)
            try:
                there = os.stat(path)
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                if not there.st_size:
                    self._torn = False  # it was emptied in place, as logrotate's copytruncate does
                return self._file
        return self._open(path)

    def _open(self, path: Path) -> int:
        opened = os.open(path, APPENDING, 0o600)
        if self._file is not None:
            os.close(self._file)
        self._file, self._torn = opened, _is_torn(path)
        return opened


def _is_torn(path: Path) -> bool:
    """Whether a file ends in the middle of a line."""
    if not path.is_file() or not path.stat().st_size:
        return False
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # it may be written but not read: a blank line does no harm
        return True
