"""API keys: which are known, and which vectors each of them may name; an empty one lets nobody in."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from steerfn._errors import DataError
from steerfn.serving._refused import RequestError


class Keys:
    """The API keys of a server.

    Args:
        keys: a list of keys; or a mapping of each to the vectors that it may name (None for all). None asks for no key.

    Raises:
        DataError: a text in place of a list, no key at all, or one that no header could bear.
    """

    def __init__(self, keys: Iterable[str] | Mapping[str, Iterable[str] | None] | None) -> None:
        self.open = keys is None
        self._known: list[tuple[bytes, frozenset[str] | None]] = []
        if keys is None:
            return
        if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
            raise DataError(f"api_keys must be a list of keys, got a single {type(keys).__name__}; pass [key].")
        pairs = list(keys.items()) if isinstance(keys, Mapping) else [(key, None) for key in keys]
        if not pairs:
            raise DataError("api_keys is empty, which would leave the server open; pass a key, or leave api_keys out.")
        self._known = [(_key(i, key), _names(i, names)) for i, (key, names) in enumerate(pairs)]

    def identify(self, authorization: bytes) -> tuple[str, frozenset[str] | None]:
        """The caller, and the vectors that it may name (None for all).

        The name is the beginning of the key's hash, which tells keys apart and gives none away.

        Raises:
            RequestError: no key, or one that is not known.
        """
        if self.open:
            return "anonymous", None
        given = authorization[7:].strip() if authorization[:7].lower() == b"bearer " else b""
        # Every key is compared, so the time says nothing about which of them came close.
        allowed = [names for known, names in self._known if hmac.compare_digest(known, given)]
        if not allowed:
            raise RequestError(
                "This server wants an API key that it knows: Authorization: Bearer KEY.", 401, code="invalid_api_key"
            )
        return f"key {hashlib.sha256(given).hexdigest()[:8]}", allowed[0]


def _key(index: int, key: Any) -> bytes:
    """A key as a header bears it; errors do not show it."""
    if not isinstance(key, str) or not key.strip():
        raise DataError(
            f"api_keys[{index}] is {'empty' if isinstance(key, str) else f'a {type(key).__name__}'}, which would leave "
            "the server open; a key is a text that is not blank."
        )
    if not key.strip().isascii() or not key.strip().isprintable() or " " in key.strip():
        raise DataError(f"api_keys[{index}] has characters that no header can bear; use ASCII without blanks.")
    return key.strip().encode()


def _names(index: int, names: Iterable[str] | None) -> frozenset[str] | None:
    if names is None:
        return None
    if isinstance(names, (str, bytes)) or not all(isinstance(name, str) for name in names):
        raise DataError(f"The vectors of api_keys[{index}] must be a list of names, or None for all.")
    return frozenset(names)
