"""The names at which a server answers: what the Host header may say."""

from collections.abc import Iterable

from steerfn.values import DataError

HOSTS = ("localhost", "127.0.0.1", "::1")


def known_hosts(allowed: Iterable[str]) -> frozenset[str]:
    """The names at which a server answers: this machine's own, and those that are allowed besides.

    A page of another site that resolves its name to this machine (DNS rebinding) asks for that name.

    Raises:
        DataError: a text in place of a list, or an empty name.
    """
    names = allowed if isinstance(allowed, str) else list(allowed)
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f"allowed_hosts must be a list of host names, got {names!r:.80}; pass ['name'].")
    return frozenset(host_name(name.strip()) for name in (*HOSTS, *names))


def host_name(value: str) -> str:
    """The name in a Host header, without its port.

    Example:
        >>> host_name("[::1]:8000"), host_name("LocalHost:80"), host_name("example.org."), host_name("::1")
        ('::1', 'localhost', 'example.org', '::1')
    """
    value = value.lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value if value.count(":") > 1 else value.partition(":")[0].rstrip(".")
