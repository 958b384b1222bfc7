"""Which shortcuts a model supports, probed once with a few tokens: shared rows, skipped tokens, padding, a trunk.

Most attention models take a 4-D mask and position ids. State-space models, ALiBi and attention kernels that take no
mask do not; a few mix tokens after attention. No table says which: a few tokens are run both ways, and what is found
is remembered with the model's blocks.
"""

import contextlib
import contextvars
import dataclasses
import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from steerfn.model import Layout
from steerfn.run._positions import Read
from steerfn.run._trees import PackedRow, alone, trees
from steerfn.values import Site

R = TypeVar("R")

TOLERANCE = 2e-2
"""How far states may differ, relative to their length: by the rounding of a model's own dtype."""

_known: "weakref.WeakKeyDictionary[Layout, dict[Hashable, Any]]" = weakref.WeakKeyDictionary()


def probe_once(root: Any, at: Layout, what: Hashable, probe: Callable[[], R]) -> R:
    """The result of a probe of a model while no steering is open; remembered with its layout.

    Args:
        at: its layout: other blocks are probed anew, and so are another attention kernel and another dtype.
        what: the name of what is probed, with all else that it depends on.
        probe: runs the model.
    """
    kernel = getattr(getattr(root, "config", None), "_attn_implementation", None)
    key = (what, kernel, getattr(root, "dtype", None))
    known = _known.setdefault(at, {})
    if key not in known:
        known[key] = contextvars.Context().run(probe)
    return known[key]


def agrees(shortcut: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> bool:
    """Whether a shortcut gives what the plain way gives: pairs of states of the two, within rounding.

    A model may refuse masks, positions and caches in any way it likes: then it does not support the shortcut.
    """
    with contextlib.suppress(Exception):
        pairs = list(shortcut())
        errors = [((short - plain).norm(dim=-1) / plain.norm(dim=-1).clamp_min(1e-12)).max() for short, plain in pairs]
        return bool(pairs) and all(float(error) < TOLERANCE for error in errors)
    return False


BEGINNING, FIRST, SECOND = (5, 6, 7, 8), (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), (21, 22, 23)


# Read where a text leaves the common beginning, next to a token of the other text, and where it ends.
READS = tuple(Read(BEGINNING + own, (at % len(BEGINNING + own),)) for own in (FIRST, SECOND) for at in (4, -1))
Pass = Callable[[Sequence[Read], Sequence[PackedRow], bool], tuple[list[int], dict[Site, Tensor]]]


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """Which shortcuts of reading save work and leave the result as it is.

    Attributes:
        share: texts may share rows.
        narrow: after its attention the last block may work on the tokens that are read alone.
        pad: texts of several lengths may share a batch (prefix LMs and sparse attention may see the padding).
    """

    share: bool
    narrow: bool
    pad: bool


def capabilities(root: Any, at: Layout, sites: tuple[Site, ...], run: Pass) -> Capabilities:
    """Which shortcuts a model supports when read at some sites, probed once with a few tokens.

    Args:
        at: its layout.
        run: reads rows at the sites, narrowly or not, as `_read` does.
    """

    def probe() -> Capabilities:
        rows = [alone(i, read.ids) for i, read in enumerate(READS)]
        tree = trees({i: read.ids for i, read in enumerate(READS)}, at.d_model * 1000, None)
        parts = [run(READS, some, False)[1] for some in (rows[:2], rows[2:])]  # of one length: nothing is padded
        plain = {site: torch.cat([part[site] for part in parts]) for site in sites}

        def read(rows: list[PackedRow], narrow: bool) -> Iterable[tuple[Tensor, Tensor]]:
            numbers, states = run(READS, rows, narrow)
            return [(states[site], plain[site][torch.tensor(numbers, device=plain[site].device)]) for site in states]

        trials = (tree, False), (rows[2:], True), (rows, False)
        return Capabilities(*(agrees(functools.partial(read, *trial)) for trial in trials))

    return probe_once(root, at, ("reading", sites), probe)


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
