"""The bytes of a file that may come from anyone: no pipe waits, no device runs on, and a limit holds for all of it."""

import os
import stat
from pathlib import Path

from steerfn.values.files._document import Refused

CHUNK = 2**18


def read_bytes(path: Path, limit: int, fix: str = "pass a file that sf.save wrote") -> bytes:
    """The bytes of a regular file, in memory of twice its size.

    Raises:
        Refused: something other than a regular file (which `fix` says what to do about), or more bytes than `limit`.
        OSError: as `open`.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # asked before opening: opening a pipe would wait for its writer
        raise Refused("it is not a regular file", fix)
    check_size(status.st_size, limit)
    chunks, size = [], 0
    # By chunks: it may have grown, some files do not say their size, and read(n) allocates n before it reads.
    with open(path, "rb") as file:
        while size <= limit and (chunk := file.read(CHUNK)):
            chunks.append(chunk)
            size += len(chunk)
    check_size(size, limit)
    return b"".join(chunks)


def check_size(size: int, limit: int) -> None:
    """Refuse what is larger than the limit."""
    if size > limit:
        raise Refused(f"it has {size} bytes, more than the limit of {limit} bytes", "save less in one file")
