"""Text files with one example a line."""

from pathlib import Path

from steerfn._errors import DataError


def lines(path: str) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}; check the name.") from None
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not UTF-8 text; save it as UTF-8.") from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise DataError(f"'{path}' holds no text; write one example a line.")
    return found
