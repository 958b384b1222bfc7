"""One forward pass under one entry, which may be cut short once everything is known."""

from typing import Any

import torch

from steerfn import _forward
from steerfn._blocks import Layout
from steerfn._forward import Entry
from steerfn._substitute import substitutions_of


class Enough(BaseException):
    """Raised inside a forward pass to end it."""


def passed(model: Any, root: Any, at: Layout, entry: Entry, given: dict[str, Any]) -> Any:
    """The output of a forward pass, without a cache unless one is given, or None where `Enough` has ended it.

    Args:
        model: what is called.
        root: the model in it.
        at: its layout.
        entry: what acts, beside the steerings that are open.
        given: the model's inputs.
    """
    substitutions = substitutions_of(root, at)
    substitutions.open(root, at, entry, {})
    token = _forward.active.set((*_forward.active.get(), entry))
    try:
        with torch.no_grad():
            return model(**{"use_cache": False, **given})
    except Enough:
        return None
    finally:
        _forward.active.reset(token)
        substitutions.close(entry)
