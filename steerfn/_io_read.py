"""The bytes of a file that may come from anyone: no pipe waits, no device runs on, and a limit holds for all of it."""

import os
import stat
from pathlib import Path

from steerfn._io_document import Refused

CHUNK = 2**18


def read_bytes(path: Path, limit: int, fix: str = "pass a file that sf.save wrote") -> bytes:
    """What a regular file holds, in memory of twice its size.

    Args:
        path: the file.
        limit: the most bytes it may have.
        fix: what to do where it is no regular file.

    Raises:
        Refused: something else than a regular file, or a larger one.
        OSError: as `open`.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):  # asked before opening: opening a pipe would wait for its writer
        raise Refused("it is not a regular file", fix)
    check_size(about.st_size, limit)
    chunks, size = [], 0
    # By chunks: it may have grown, some files do not say their size, and read(n) allocates n before it reads.
    with open(path, "rb") as file:
        while size <= limit and (chunk := file.read(CHUNK)):
            chunks.append(chunk)
            size += len(chunk)
    check_size(size, limit)
    return b"".join(chunks)


def check_size(size: int, limit: int) -> None:
    """Refuse what is larger than the limit.

    Raises:
        Refused: it is.
    """
    if size > limit:
        raise Refused(f"it has {size} bytes, and such a file has {limit} at most", "save less in one file")
