"""Holding examples out: what a direction is chosen by is not what it was made of."""

import collections
import hashlib
from collections.abc import Sequence

from steerfn._text import Text
from steerfn.discover._lint import same_text


def held_out(texts: Sequence[Text], part: float, seed: int) -> list[bool]:
    """Which texts to hold out: about a part of them, at least one, and never all.

    Texts that are the same but for case and white space stay together, so none is on both sides; where all are the
    same, none is held out. Depends on the texts and the seed, not on their order.
    """
    keys = [same_text(text) for text in texts]
    counts = collections.Counter(keys)
    chosen: set[str] = set()
    have, wanted = 0, max(1, round(part * len(keys)))
    for key in sorted(counts, key=lambda key: _order(key, seed))[:-1]:
        if have >= wanted:
            break
        chosen.add(key)
        have += counts[key]
    return [key in chosen for key in keys]


def _order(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).digest()
