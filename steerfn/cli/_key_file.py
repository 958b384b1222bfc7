"""The keys of a server, from a file with one a line or from a variable with commas between them."""

import os
from pathlib import Path

from steerfn.values import FileError, SteerError

API_KEYS = "STEERFN_API_KEYS"
ADMIN_KEYS = "STEERFN_ADMIN_KEYS"
Vectors = list[str] | dict[str, tuple[float, float] | None]


def api_keys(path: str | None) -> dict[str, Vectors | None] | None:
    """Each key with its vectors, and where any has one with its range of alpha; None where no keys are asked for.

    Raises:
        SteerError: a variable, or a file, without a key or with one that is not as it should be.
    """
    lines = _lines(path, API_KEYS, "API key", "leave the server open")
    if lines is None:
        return None
    return {key: _vectors(f"'{path}', line {number}", words) for number, (key, *words) in lines}


def admin_keys(path: str | None) -> list[str] | None:
    """The keys that may change vectors; None where nobody may.

    Raises:
        SteerError: as `api_keys`, or something after a key.
    """
    lines = _lines(path, ADMIN_KEYS, "admin key", "let anyone change vectors")
    if lines is None:
        return None
    for number, words in lines:
        if len(words) > 1:
            raise FileError(
                f"'{path}', line {number}, has something after the key; an admin key stands alone, since it may change "
                "every vector."
            )
    return [key for _, (key,) in lines]


def _lines(path: str | None, variable: str, what: str, danger: str) -> list[tuple[int, list[str]]] | None:
    """The words of each line that has any, with its number."""
    if path is None:
        if variable not in os.environ:
            return None
        keys = [key.strip() for key in os.environ[variable].split(",")]
        if not all(keys):
            raise SteerError(
                f"The variable {variable} holds {'an empty key' if any(keys) else 'no key'}, which would {danger}; "
                "write keys separated by commas, or unset it."
            )
        return [(1, [key]) for key in keys]
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"Cannot read the {what}s in '{path}' ({error}); pass a text file, one key a line.") from None
    lines = [(number, words) for number, line in enumerate(text.splitlines(), 1) if (words := line.split())]
    if not lines:
        raise FileError(f"'{path}' holds no {what}, which would {danger}; write one a line.")
    return lines


def _vectors(where: str, words: list[str]) -> Vectors | None:
    """The vectors that a key may use, by the words after it: `name`, or `name=low:high`."""
    ranges: dict[str, tuple[float, float] | None] = {}
    for word in words:
        name, _, bounds = word.partition("=")
        if name in ranges:
            raise FileError(f"{where}, names {name!r:.140} twice; leave one of them out.")
        try:
            low, high = map(float, bounds.split(":")) if "=" in word else (None, None)
        except ValueError:
            raise FileError(
                f"{where}: {word!r:.140} is not a vector's name with a range of alpha, such as happy=-1:2."
            ) from None
        ranges[name] = None if low is None or high is None else (low, high)
    return ranges if any(ranges.values()) else list(ranges) or None
