"""Names that a package shows from the start and loads at first use: steering alone need not load discovery."""

import importlib
import importlib.util
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: dict[str, Any], names: Mapping[str, str], folders: str = "", moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    The package's own folders are found too, and listed where they are given.

    Args:
        package: its globals.
        names: what loads later, by module: the names in it, separated by blanks.
        folders: modules that are such names themselves.
        moved: names that the package once held, by the one of its names under which they are found now; using one
            warns, and `old=new` says that it is called otherwise there.
    """
    here = package["__name__"]
    homes = {name: module for module, listed in names.items() for name in listed.split()}
    modules = {module.rpartition(".")[2]: module for module in folders.split()}
    shown = {
        name for name, value in package.items() if not isinstance(value, types.ModuleType) and name != "TYPE_CHECKING"
    }
    gone = {
        old: (home, new or old)
        for home, listed in (moved or {}).items()
        for old, _, new in (entry.partition("=") for entry in listed.split())
    }

    def getattr_(name: str) -> Any:
        if name in gone:
            home, new = gone[name]
            advice = f"{here}.{name} is {here}.{home}.{new} now; the old spelling goes with the next release."
            warnings.warn(advice, DeprecationWarning, stacklevel=2)
            return getattr(getattr(importlib.import_module(here), home), new)
        if name in modules:
            value = importlib.import_module(modules[name])
        elif name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{here}.{name}"):
            value = importlib.import_module(f"{here}.{name}")
        else:
            raise AttributeError(f"module {here!r} has no attribute {name!r}")
        package[name] = value
        return value

    return getattr_, lambda: sorted({*shown, *homes, *modules})


def contents(package: dict[str, Any]) -> Callable[[], list[str]]:
    """A folder's `__dir__`: the names that it holds by now. What it imports after that is for other folders."""
    names = sorted(package)
    return lambda: names
