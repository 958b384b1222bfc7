"""Whether a model computes texts that share a row as it computes them alone: asked of the model itself.

Most attention models take a 4-D mask and position ids, and then do. State-space models, ALiBi and attention kernels
that take no mask do not. No table says which: a few tokens are run both ways, once for each model.
"""

import contextlib
import weakref
from typing import Any

import torch
from torch import Tensor

from steerfn._layout import Layout
from steerfn._site import Site
from steerfn._substitute import walk
from steerfn.reading._packing import alone, pack
from steerfn.reading._positions import Read

BEGINNING, FIRST, SECOND = (5, 6, 7, 8), (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), (21, 22, 23)

_known: "weakref.WeakKeyDictionary[Any, dict[Any, bool]]" = weakref.WeakKeyDictionary()


def shares(root: Any, at: Layout, read: Any) -> bool:
    """Whether texts may share rows on this model.

    Args:
        root: the model.
        at: its layout.
        read: reads rows at sites, as `_engine` does, to try it with.
    """
    blocks, _, _ = walk(root, at.blocks[0].path)
    config = getattr(root, "config", None)
    key = (getattr(config, "_attn_implementation", None), at.n_layers, getattr(root, "dtype", None))
    known = _known.setdefault(blocks, {})
    if key not in known:
        known[key] = _try(at, read)
    return known[key]


def _try(at: Layout, read: Any) -> bool:
    texts = [BEGINNING + FIRST, BEGINNING + SECOND]
    whole = [Read(ids, tuple(range(len(ids)))) for ids in texts]
    single = [Read(ids, (len(ids) - 1,)) for ids in texts]
    site = Site("resid_post", at.n_layers - 1)
    [row] = pack(single, whole=True, share=True, width=at.d_model)
    # A model may refuse masks and positions in any way it likes: then it does not share.
    with contextlib.suppress(Exception):
        for reads in (whole, single):
            apart = torch.cat([read([alone(i, texts[i])], reads, (site,))[1][site] for i in (0, 1)])
            numbers, together = read([row], reads, (site,))
            if not _close(together[site][torch.tensor(numbers).argsort()], apart):
                return False
        return True
    return False


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of the model's own dtype (in float32 here)."""
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool(torch.isfinite(found).all()) and float(error.max()) < 2e-2


def window(config: Any) -> int | None:
    """The shortest attention window or chunk that a configuration names, or None.

    A 4-D mask takes the place of the model's own, windows included, so longer texts do not share rows.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = vars(text) if text is not None else {}
    sizes = [
        size
        for name, size in named.items()
        if ("window" in name or "chunk" in name) and isinstance(size, int) and not isinstance(size, bool) and size > 0
    ]
    return min(sizes, default=None)
