"""Names that a package shows from the start and loads at first use: steering alone need not load discovery."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def later(package: dict[str, Any], names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    Args:
        package: its globals.
        names: what loads later, by module: the names in it, separated by blanks. Modules without an underscore are
            such names themselves.
    """
    homes = {name: module for module, found in names.items() for name in found.split()}
    modules = {last: module for module in names if not (last := module.rpartition(".")[2]).startswith("_")}

    def getattr_(name: str) -> Any:
        if name in modules:
            value = importlib.import_module(modules[name])
        elif name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
        else:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        package[name] = value
        return value

    return getattr_, lambda: sorted({*package, *homes, *modules})
