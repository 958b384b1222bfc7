"""The token ids whose keys and values a cache holds, as far as steered passes have put them there.

A cache does not say which tokens it holds. What the last pass left in it is remembered with it, and believed only while
the cache holds the very tensors that this pass left: whoever fills, reorders or crops it puts others in their place.
"""

import weakref
from typing import Any

from torch import Tensor

_known: weakref.WeakKeyDictionary[Any, tuple[Tensor, weakref.ref[Tensor], int]] = weakref.WeakKeyDictionary()


def remember_rows(cache: Any, ids: Tensor) -> None:
    """Remember the token ids of the rows that a cache holds."""
    keys = _keys(cache)
    if keys is not None and type(cache).__weakrefoffset__ and type(cache).__hash__ is not None:
        _known[cache] = ids, weakref.ref(keys), _version(keys)


def cached_rows(cache: Any) -> Tensor | None:
    """The token ids of the rows that a cache holds, `[batch, past]`; None where they are not known."""
    keys = _keys(cache)
    ids, held, version = _known.get(cache, (None, None, None)) if keys is not None else (None, None, None)
    return ids if held is not None and held() is keys and version == _version(keys) else None


def _keys(cache: Any) -> Tensor | None:
    """The keys of the first block that keeps any."""
    layers = getattr(cache, "layers", None) or getattr(cache, "key_cache", None) or ()
    keys = (layer if isinstance(layer, Tensor) else getattr(layer, "keys", None) for layer in layers)
    return next((each for each in keys if isinstance(each, Tensor) and each.numel()), None)


def _version(keys: Tensor | None) -> int:
    """How often a tensor was written to; an inference tensor does not count."""
    return -1 if keys is None or keys.is_inference() else keys._version
