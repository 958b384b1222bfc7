"""One forward pass under one entry, which may be cut short once everything is known."""

from typing import Any

import torch
from torch import nn

from steerfn import _forward
from steerfn._blocks import Layout
from steerfn._forward import Entry, entries_of
from steerfn._spine import Spine
from steerfn._substitute import plan, substitutions_of


class Enough(BaseException):
    """Raised inside a forward pass to end it."""


def passed(model: Any, root: Any, at: Layout, entry: Entry, given: dict[str, Any]) -> Any:
    """The output of a forward pass, without a cache unless one is given, or None where `Enough` has ended it.

    A model in training mode is read in evaluation mode, without dropout, on a private copy.

    Args:
        model: what is called.
        root: the model in it.
        at: its layout.
        entry: what acts, beside the steerings that are open.
        given: the model's inputs.
    """
    substitutions = substitutions_of(root, at)
    training = any(module.training for module in root.modules())
    if training:
        model = _evaluating(root, at, entry)
    else:
        substitutions.open(root, at, entry, {})
    token = _forward.active.set((*_forward.active.get(), entry))
    try:
        with torch.no_grad():
            return model(**{"use_cache": False, **given})
    except Enough:
        return None
    finally:
        _forward.active.reset(token)
        if not training:
            substitutions.close(entry)


def _evaluating(root: Any, at: Layout, entry: Entry) -> nn.Module:
    """A copy of a model in evaluation mode, for an entry and for the steerings that are open."""
    acting = (*entries_of(entry.host), entry)
    sites = [site for each in acting for site in (*each.sites, *each.read_sites, *each.through)]
    planned = plan(at, sites, tokenwise=entry.matter is not None)
    copy = Spine(root, at, planned, whole=True, host=entry.host)
    copy.evaluate()
    return copy.root
