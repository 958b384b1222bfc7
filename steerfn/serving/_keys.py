"""The keys of a server: who may ask, for which vectors at which strengths, and who may change the vectors.

An empty key lets nobody in. Without admin keys nobody changes anything, not even where no key is asked for.
"""

import dataclasses
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from steerfn.serving._request_error import RequestError
from steerfn.values import DataError, SteerError, finite_number

ANY = "*"
"""Stands for every vector that a key does not name."""
Range = tuple[float, float]
ApiKeys = Iterable[str] | Mapping[str, Iterable[str] | Mapping[str, Range | None] | None]


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The vectors that a key may name, and at which strengths.

    Attributes:
        ranges: by name, the least and the largest alpha, or None for any; "*" is every vector that is not named.
    """

    ranges: Mapping[str, Range | None]

    def __contains__(self, name: object) -> bool:
        return name in self.ranges or ANY in self.ranges

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranges)

    def range_of(self, name: str) -> Range | None:
        """The least and the largest alpha of a vector; None for any."""
        return self.ranges.get(name, self.ranges.get(ANY))

    def check_name(self, name: str) -> None:
        """Refuse a vector that the key may not name.

        Raises:
            RequestError: such a one.
        """
        if name not in self:
            offered = ", ".join(sorted(self)[:10]) or "none"
            raise RequestError(
                f"There is no vector {name!r:.140} for this key; it has {offered}.", 404, "steering", "unknown_vector"
            )

    def check_strengths(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Refuse what a request does with its vectors beyond the ranges of the key.

        Scopes and layers part the entries of one vector, so that any of them may meet at a token: every sum that
        some of them give must be in the range. An ablation has no strength, and no range allows it.

        Args:
            entries: the steering of a request, each with `vector`, `alpha`, `operation` and `sha256`, by which a
                vector is known under another name too.

        Raises:
            RequestError: a strength outside of a range, or an ablation of a vector that has one.
        """
        for entry in entries:
            name, bounds = entry["vector"], self.range_of(entry["vector"])
            if bounds is None:
                continue
            low, high = bounds
            may = f"this key may add it with an alpha from {_format(low)} to {_format(high)}"
            if entry["operation"] != "add":
                raise _beyond(f"The vector {name!r} cannot be ablated with this key: {may}, and no more.")
            alphas = [
                each["alpha"] for each in entries if each["sha256"] == entry["sha256"] and each["operation"] == "add"
            ]
            least = sum(alpha for alpha in alphas if alpha < 0) or min(alphas)
            most = sum(alpha for alpha in alphas if alpha > 0) or max(alphas)
            for strength in (least, most):
                if not low <= strength <= high:
                    come = "is" if len(alphas) == 1 else "comes, where its entries meet, to"
                    raise _beyond(f"The alpha of the vector {name!r} {come} {_format(strength)}, and {may}.")


class Caller(NamedTuple):
    """Who asks, and what it may.

    Attributes:
        who: "anonymous", or the beginning of the key's hash, which tells keys apart and gives none away.
        allowed: the vectors that it may name; None for all, at any strength.
        admin: whether it may change vectors.
    """

    who: str
    allowed: Allowed | None
    admin: bool


ANONYMOUS = Caller("anonymous", None, False)


class Keys:
    """The keys of a server.

    Args:
        api_keys: a list of keys; or a mapping of each to the vectors that it may name, as a list, or as a mapping of
            each to its range of alpha (None for all). None asks for no key.
        admin_keys: keys that may do all that others may, and change vectors too. None lets nobody do that.

    Raises:
        DataError: a text in place of a list, no key at all, one that no header could bear or that is of both kinds,
            or a range that is not a pair of finite numbers in order.

    Example:
        >>> from steerfn.serving import Keys
        >>> keys = Keys({"key-of-ann": ["happy"], "key-of-bob": {"happy": (-2, 2)}}, admin_keys=["key-of-eve"])
        >>> keys.open
        False
    """

    def __init__(self, api_keys: ApiKeys | None, admin_keys: Iterable[str] | None = None) -> None:
        self.open, self.admin = api_keys is None, admin_keys is not None
        self._known: list[tuple[bytes, Caller]] = []
        for where, key, vectors in _items("api_keys", api_keys, "leave the server open"):
            self._known.append((key, Caller(f"key {_digest(key)}", _vectors(where, vectors), False)))
        if isinstance(admin_keys, Mapping):
            raise DataError("admin_keys must be a list of keys, since each may change every vector; pass [key].")
        for where, key, _ in _items("admin_keys", admin_keys, "let anyone change vectors"):
            if any(key == known and not caller.admin for known, caller in self._known):
                raise DataError(f"{where} is one of api_keys too; give those who change vectors a key of their own.")
            self._known.append((key, Caller(f"admin key {_digest(key)}", None, True)))

    def identify(self, authorization: bytes) -> Caller:
        """Who asks.

        Raises:
            RequestError: no key where one is asked for, or one that is not known.
        """
        key = authorization[7:].strip() if authorization[:7].lower() == b"bearer " else b""
        # Every key is compared, so the time says nothing about which of them came close.
        callers = [caller for known, caller in self._known if hmac.compare_digest(known, key)]
        if not callers and not self.open:
            raise RequestError(
                "This server needs an API key that it knows: Authorization: Bearer KEY.", 401, code="invalid_api_key"
            )
        return callers[0] if callers else ANONYMOUS

    def check_admin(self, caller: Caller) -> None:
        """Refuse who may not change vectors.

        Raises:
            RequestError: no key, or one that is no admin key.
        """
        if not self.admin:
            raise RequestError(
                "This server's vectors cannot be changed over HTTP, since it was started without admin keys; start it "
                "with --admin-keys FILE (serving.app(admin_keys=[...])).",
                403,
                code="no_admin_keys",
            )
        if caller == ANONYMOUS:
            raise RequestError(
                "Changing vectors needs an admin key of this server: Authorization: Bearer KEY.",
                401,
                code="invalid_api_key",
            )
        if not caller.admin:
            raise RequestError(
                "Changing vectors needs an admin key of this server, and this key is not one; it may use them only.",
                403,
                code="not_an_admin",
            )


def check_keys(api_keys: ApiKeys | None, admin_keys: Iterable[str] | None = None) -> None:
    """Refuse keys that `app` would refuse, before a model is loaded.

    Raises:
        DataError: such ones.
    """
    Keys(api_keys, admin_keys)


def _items(argument: str, keys: Any, danger: str) -> Iterator[tuple[str, bytes, Any]]:
    """Each key's place in the argument, the key, and its vectors."""
    if keys is None:
        return
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise DataError(f"{argument} must be a list of keys, got a single {type(keys).__name__}; pass [key].")
    pairs = list(keys.items()) if isinstance(keys, Mapping) else [(key, None) for key in keys]
    if not pairs:
        raise DataError(f"{argument} is empty, which would {danger}; pass a key, or leave {argument} out.")
    for index, (key, vectors) in enumerate(pairs):
        yield f"{argument}[{index}]", _key(f"{argument}[{index}]", key, danger), vectors


def _key(where: str, key: Any, danger: str) -> bytes:
    """A key as a header bears it; errors do not show it."""
    if not isinstance(key, str) or not key.strip():
        raise DataError(
            f"{where} is {'empty' if isinstance(key, str) else f'a {type(key).__name__}'}, which would {danger}; a key "
            "is a text that is not blank."
        )
    if not key.strip().isascii() or not key.strip().isprintable() or " " in key.strip():
        raise DataError(f"{where} has characters that no header can bear; use ASCII without blanks.")
    return key.strip().encode()


def _vectors(where: str, vectors: Any) -> Allowed | None:
    if vectors is None:
        return None
    is_list = isinstance(vectors, Iterable) and not isinstance(vectors, (str, bytes))
    names: list[Any] = list(vectors) if is_list else []
    if not is_list or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"The vectors of {where} must be a list of names, a mapping of each to its range of alpha, or None for all."
        )
    ranges: Mapping[str, Any] = vectors if isinstance(vectors, Mapping) else dict.fromkeys(names)
    return Allowed({name: _range(where, name, bounds) for name, bounds in ranges.items()})


def _range(where: str, name: str, bounds: Any) -> Range | None:
    if bounds is None:
        return None
    try:
        low, high = (float(finite_number("alpha", bound)) for bound in bounds)
    except (TypeError, ValueError, SteerError):  # not two, or no numbers
        low, high = 1.0, 0.0
    if low > high:
        raise DataError(
            f"The range of {name!r:.140} of {where} must be (low, high), two finite numbers in order, or None for any "
            f"alpha; got {bounds!r:.80}."
        )
    return low, high


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]


def _beyond(message: str) -> RequestError:
    return RequestError(message, 403, "steering", "alpha_not_allowed")


def _format(number: float) -> str:
    """A number in few digits, or in as many as tell it from the bound that it passes."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
