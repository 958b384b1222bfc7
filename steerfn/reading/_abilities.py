"""What a model computes right of what saves work (shared rows, tokens skipped, padding): asked of the model itself.

Most attention models take a 4-D mask and position ids. State-space models, ALiBi and attention kernels that take no
mask do not; a few mix tokens after attention. No table says which: a few tokens are run both ways, once for each
model and depth.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn._blocks import Layout
from steerfn._site import Site
from steerfn.reading._packing import Row, alone, trees
from steerfn.reading._positions import Read

BEGINNING, FIRST, SECOND = (5, 6, 7, 8), (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), (21, 22, 23)
# Read where a text leaves the common beginning, next to a token of the other text, and where it ends.
READS = tuple(Read(BEGINNING + own, (at % len(BEGINNING + own),)) for own in (FIRST, SECOND) for at in (4, -1))

Pass = Callable[[Sequence[Read], Sequence[Row], bool], tuple[list[int], dict[Site, Tensor]]]


@dataclasses.dataclass(frozen=True)
class Abilities:
    """What saves work and leaves the result as it is.

    Attributes:
        share: texts may share rows.
        narrow: after its attention the last block may work on the tokens that are read alone.
        pad: texts of several lengths may share a batch (prefix LMs and sparse attention may see the padding).
    """

    share: bool
    narrow: bool
    pad: bool


_known: "weakref.WeakKeyDictionary[Layout, dict[Any, Abilities]]" = weakref.WeakKeyDictionary()


def abilities(root: Any, at: Layout, sites: tuple[Site, ...], run: Pass) -> Abilities:
    """What a model can when read at some sites, found out once.

    Args:
        root: the model.
        at: its layout.
        sites: resolved.
        run: reads rows at the sites, narrowly or not, as `_engine` does.
    """
    config = getattr(root, "config", None)
    key = (getattr(config, "_attn_implementation", None), sites, getattr(root, "dtype", None))
    known = _known.setdefault(at, {})
    if key not in known:
        rows = [alone(i, read.ids) for i, read in enumerate(READS)]
        tree = trees({i: read.ids for i, read in enumerate(READS)}, at.d_model * 1000, None)
        parts = [run(READS, some, False)[1] for some in (rows[:2], rows[2:])]  # of one length: nothing is padded
        expected = {site: torch.cat([part[site] for part in parts]) for site in sites}
        trials = (tree, False), (rows[2:], True), (rows, False)
        known[key] = Abilities(*(_same(run, *trial, expected) for trial in trials))
    return known[key]


def _same(run: Pass, rows: list[Row], narrow: bool, expected: dict[Site, Tensor]) -> bool:
    """Whether rows give what the texts in them give apart, up to the rounding of the model's own dtype."""
    # A model may refuse masks and positions in any way it likes: then it cannot.
    with contextlib.suppress(Exception):
        numbers, found = run(READS, rows, narrow)
        for site, states in found.items():
            wanted = expected[site][torch.tensor(numbers, device=states.device)]
            error = (states - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-12)
            if not float(error.max()) < 2e-2:
                return False
        return True
    return False


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
