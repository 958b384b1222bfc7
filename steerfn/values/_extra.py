"""Packages that come with an extra, imported where they are used, and how an extra is installed."""

import importlib
from typing import Any

from steerfn.values._errors import SteerError


def import_extra(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its full name, such as "scipy.stats".
        extra: the extra of steerfn that installs the package.

    Raises:
        SteerError: it cannot be imported; the error says how to install the extra.

    Example:
        >>> import_extra("math", "evaluate").sqrt(4)
        2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SteerError(missing(module.partition(".")[0], extra, error)) from error


def missing(package: str, extra: str, error: ImportError | None = None) -> str:
    """The sentence that says which package is missing and how to install it.

    The one place that knows how steerfn is installed: from a clone, since it is on no registry yet.

    Args:
        package: the package, as people call it.
        extra: the extra of steerfn that installs it.
        error: what the import raised; None: the package is not installed at all.
    """
    why = "is not installed" if error is None else f"cannot be imported ({error})"
    return (
        f"This needs {package}, which {why}; in the folder of steerfn's clone run: "
        f'pip install -c constraints.txt -e ".[{extra}]"'
    )
