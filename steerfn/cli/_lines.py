"""Text files with one example a line."""

from pathlib import Path

from steerfn._errors import DataError
from steerfn._io_document import MAX_BYTES, Refused
from steerfn._io_read import read_bytes


def lines(path: str) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        text = read_bytes(Path(path), MAX_BYTES, "pass a text file").decode("utf-8-sig")
    except Refused as refused:
        raise DataError(f"Cannot read '{path}': {refused.what}; {refused.fix}.") from None
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}; check the name.") from None
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not UTF-8 text; save it as UTF-8.") from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise DataError(f"'{path}' holds no text; write one example a line.")
    return found
