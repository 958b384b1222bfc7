"""Where a model keeps its sites: found by rule, then checked on a forward pass.

The pass runs over a structural copy of the model (on the meta device where that works), so a wrong guess is an error
at `layout(model)`, not a silent no-op.
"""

import weakref
from typing import Any

from torch import nn

from steerfn._blocks import Layout, unwrapped
from steerfn._find_blocks import find
from steerfn._layout_check import checked

_known: "weakref.WeakKeyDictionary[nn.Module, Layout]" = weakref.WeakKeyDictionary()


def layout(model: Any, *, check: bool = True) -> Layout:
    """Find a causal LM's blocks and sites by rule, check them, and say what was found.

    Args:
        model: a transformers causal LM (also wrapped by PEFT or `torch.compile`), or the text tower's
            parent in a vision-language model. Nothing on it changes.
        check: run one forward pass over a structural copy (meta tensors where possible) to see that each
            block runs once, in order, and that every site has the shape it should have.

    Raises:
        ModelError: no decoder blocks are found, or the check contradicts the finding.

    Example:
        >>> import steerfn as sf
        >>> print(sf.layout(model))  # doctest: +SKIP
    """
    root = unwrapped(model)
    found = _known.get(root)
    if found is None or (check and found.checked == "by name only"):
        found = find(root)
        if check:
            found = checked(root, found)
        _known[root] = found
    return found
