"""Files that appear whole or not at all.

Bytes go to a temporary file in the target's folder, are flushed to the disk, and take the target's
name in one step. Several files are prepared before any of them is put in place. If the machine stops
between two of those renames, the pair it leaves does not match, which its checksum tells at load.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write all the files, in order; when one fails, all targets are what they were.

    Raises:
        OSError: the file system refuses.
    """
    *first, _ = files
    former = {path: path.read_bytes() if path.exists() else None for path in first}
    with contextlib.ExitStack() as stack:
        staged = {path: stack.enter_context(_staged(path, data)) for path, data in files.items()}
        placed: list[Path] = []
        try:
            for path, temporary in staged.items():
                os.replace(temporary, path)
                placed.append(path)
        except BaseException:
            for path in placed:
                _restore(path, former.get(path))
            raise
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


@contextlib.contextmanager
def _staged(path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file beside `path` that holds `data` on the disk; gone at the end, if it is still there."""
    temporary = path.with_name(f".steerfn-{secrets.token_hex(8)}.tmp")
    try:
        # Not tempfile: it makes files that only their owner can read, and the umask cannot be asked for safely.
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _restore(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
        return
    with _staged(path, data) as temporary:
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    # The files are in place by now. Some systems cannot open a folder, and some disks cannot flush one.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
