"""The dashboard: a page to try vectors on, made with Gradio. Needs the extra `dashboard`.

    steerfn dashboard demo --vectors folder

See `docs/guides/dashboard.md`. A `State` and the code that it gives need no extra.
"""

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from steerfn._lazy import lazy
from steerfn.board._command import to_command as to_command
from steerfn.board._python import to_python as to_python
from steerfn.board._source import Source as Source
from steerfn.board._state import SCOPES as SCOPES
from steerfn.board._state import Push as Push
from steerfn.board._state import State as State
from steerfn.board._steering import operator_of as operator_of
from steerfn.board._steering import read_steering as read_steering
from steerfn.values import SteerError, missing

if TYPE_CHECKING:  # what needs the extra
    from steerfn.board._app import Page as Page
    from steerfn.board._presets import Presets as Presets
    from steerfn.board._presets import folder_of as folder_of
    from steerfn.board._result import write_result as write_result
    from steerfn.board._serve import Dashboard as Dashboard
    from steerfn.board._serve import app as app
    from steerfn.board._serve import check_keys as check_keys
    from steerfn.board._serve import dashboard as dashboard

_load, __dir__ = lazy(
    globals(),
    {
        "steerfn.board._app": "Page",
        "steerfn.board._presets": "Presets folder_of",
        "steerfn.board._serve": "Dashboard app check_keys dashboard",
        "steerfn.board._result": "write_result",
    },
)


def __getattr__(name: str) -> Any:
    if name in ("Dashboard", "Page", "app", "check_keys", "dashboard"):
        if importlib.util.find_spec("gradio") is None:
            raise SteerError(missing("gradio", "dashboard"))
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before it is imported: it reports each use
        os.environ.setdefault("GRADIO_RUN_HISTORY", "False")  # older versions have no argument for it
    return _load(name)
