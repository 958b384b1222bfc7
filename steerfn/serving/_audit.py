"""The audit log: a line of JSON for every request at its beginning and at its end, only ever appended."""

import datetime
import json
import os
import threading
from pathlib import Path
from typing import Any

from steerfn._errors import FileError


class Audit:
    """Appends lines to a file, each flushed to the disk before the request goes on.

    Args:
        path: the file; None keeps no log.
        prompts: whether prompts are written too. They are not, unless asked for.

    Raises:
        FileError: a file that cannot be appended to.
    """

    def __init__(self, path: Any, prompts: bool = False) -> None:
        self.prompts = prompts
        self._lock = threading.Lock()
        self._file: int | None = None
        if path is not None:
            try:
                self._file = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            except OSError as error:
                raise FileError(f"Cannot append to the audit log '{path}': {error.strerror}; name another.") from None

    def write(self, event: str, identifier: str, **told: Any) -> None:
        """One line.

        Raises:
            OSError: the disk refuses: then the request must not go on.
        """
        if self._file is None:
            return
        if not self.prompts:
            told.pop("prompts", None)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "id": identifier, **told}, allow_nan=False) + "\n"
        with self._lock:
            os.write(self._file, line.encode("utf-8", "backslashreplace"))
            os.fsync(self._file)
