"""Packages that come with an extra, imported where they are used."""

import importlib
from typing import Any

from steerfn._errors import SteerError


def imported(module: str, extra: str) -> Any:
    """A module of an optional package.

    Args:
        module: its full name, such as "scipy.stats".
        extra: the extra of steerfn that installs the package.

    Raises:
        SteerError: it cannot be imported; the error names the extra.

    Example:
        >>> imported("math", "evaluate").sqrt(4)
        2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise SteerError(
            f'This needs {package}, which cannot be imported ({error}); run `pip install "steerfn[{extra}]"`.'
        ) from error
