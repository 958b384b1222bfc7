"""Files that appear whole or not at all, and the question asked before the work: can one be written there?

Bytes go to a temporary file in the target's folder, are flushed to the disk, and take the target's
name in one step, with the permissions of the file they replace. Several files are prepared before any
of them is put in place. A run that is killed leaves its temporary file behind; the next write into the
folder removes it.
"""

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steerfn.values._errors import FileError

TEMPORARY = re.compile(r"\.steerfn-[0-9a-f]{16}\.tmp")
ABANDONED = 3600.0
"""Seconds after which a temporary file belongs to no running write."""


def write_together(files: Mapping[Path, bytes], ready: Callable[[], Any] = lambda: None) -> None:
    """Write all the files, in order; when one fails, all targets are what they were.

    Args:
        files: the bytes of each.
        ready: called when all of them are on the disk and none is in place; what it raises leaves all as it was.

    Raises:
        OSError: the file system refuses.
    """
    *first, last = files
    for folder in {path.parent for path in files}:
        remove_abandoned(folder)
    former = {path: path.read_bytes() if path.exists() else None for path in first}
    mode = _mode(last)  # a new file beside a private one is private too
    with contextlib.ExitStack() as stack:
        staged = {
            path: stack.enter_context(_stage_file(path, data, _mode(path) or mode)) for path, data in files.items()
        }
        ready()
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
        sync_folder(folder)


def check_output(path: Any, what: str) -> Path:
    """The path of a file, once an empty one could be written beside it; errors call it `what`, such as "The table".

    Raises:
        FileError: no path, a folder, one in a folder that does not exist, or a disk that refuses.
    """
    try:
        place = Path(path)
    except TypeError:
        raise FileError(
            f"{what} is named by text or a Path, not by {path!r:.80} of type {type(path).__name__}."
        ) from None
    try:
        if place.is_dir():
            reason = "it is a folder; name a file"
        elif not place.parent.is_dir():
            reason = f"there is no folder '{place.parent}'; create it first"
        else:
            trial = temporary_name(place)
            open(trial, "xb").close()
            trial.unlink()
            return place
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = f"{getattr(error, 'strerror', None) or error}; choose another place"
    raise FileError(f"{what} cannot be written to '{path}': {reason}.")


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nothing has, and that `remove_abandoned` knows."""
    return path.with_name(f".steerfn-{secrets.token_hex(8)}.tmp")


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that runs which were killed left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY.fullmatch(entry.name):
                remove_old(Path(entry.path), ABANDONED)


def remove_old(path: Path, seconds: float) -> None:
    """Remove a regular file that was written longer ago than so many seconds."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > seconds:
            path.unlink()


def _mode(path: Path) -> int | None:
    """The permissions of a file that is there."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(os.stat(path).st_mode)
    return None


@contextlib.contextmanager
def _stage_file(path: Path, data: bytes, mode: int | None) -> Iterator[Path]:
    """A temporary file beside `path` that holds `data` on the disk; gone at the end, if it is still there."""
    temporary = temporary_name(path)
    try:
        # Not tempfile: it makes files that only their owner can read, and the umask cannot be asked for safely.
        with open(temporary, "xb") as file:
            if mode is not None:  # before there is anything to read; some file systems have no permissions
                with contextlib.suppress(OSError):
                    os.chmod(temporary, mode)
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
    with _stage_file(path, data, _mode(path)) as temporary:
        os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Have what was put into a folder, or taken out of it, on the disk."""
    # The files are in place by now. Some systems cannot open a folder, and some disks cannot flush one.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
