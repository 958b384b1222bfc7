"""Sequences that grow token by token: the prompts of a running `generate`, and how far its forward passes have come.

A forward pass inside `generate` is the generation's own only if `generate` made it. Guidance, logits processors,
stopping criteria and code of the user's run passes besides: each of those belongs to a sequence of its own.
"""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steerfn.operators import Memory, without_padding

CACHES = ("past_key_values", "cache_params", "state", "mems")
"""The names under which models take a cache."""
BESIDE = 16
"""How many sequences are followed beside a generation; those that went on last are kept."""


class Sequence:
    """The rows of some forward passes that go on from each other.

    Args:
        entries: the steerings under which it begins, in opening order.
        rows: how many prompts there are; consecutive rows of a larger batch hold one prompt.
        length: tokens of the longest prompt, padding included.
        mask: the padding mask of the prompts, `[rows, length]`, if there is one.

    Attributes:
        row_ids: the token ids of whole rows up to the next pass, where `generate` has told them; None elsewhere.
        masks: what scopes of token ids select in that pass, by their keys: compiled code finds them here.
    """

    def __init__(self, entries: Iterable[Any], rows: int, length: int, mask: Tensor | None) -> None:
        self.rows, self.length, self.mask = rows, length, mask
        self.batch = self.seen = 0
        self.entries = list(entries)
        self.memories = [Memory() for _ in self.entries]
        self.row_ids: Tensor | None = None
        self.masks: dict[str, Tensor] = {}
        self._cache: Any = None

    def memory(self, entry: Any) -> Memory:
        """The decisions of a steering's conditions on the prompt."""
        if entry not in self.entries:  # opened while generate runs
            self.entries.append(entry)
            self.memories.append(Memory())
        return self.memories[self.entries.index(entry)]

    def advance(self, arguments: Mapping[str, Any], cached: Any, seq: int) -> Any:
        """Tokens before those of a new forward pass of `seq` tokens, given its arguments and what its cache says.

        A cache that counts no tokens (a recurrent state) is empty where the pass holds more than was seen before.
        """
        if isinstance(cached, Tensor):
            return cached  # a static cache counts by itself; a count kept here would compile anew at every token
        holds = cache_in(arguments) is not None and seq <= self.seen
        past = cached or (self.seen if holds else 0)
        self.seen = seq + past
        return past

    def take(self, cache: Any, batch: int) -> None:
        """Remember whose a cache is, without keeping it alive."""
        self.batch = batch
        if cache is not None and type(cache).__weakrefoffset__:
            self._cache = weakref.ref(cache)

    def holds(self, cache: Any) -> bool:
        """Whether a cache is the one that its last pass used."""
        return cache is not None and self._cache is not None and self._cache() is cache

    def goes_on(self, cache: Any, cached: Any, batch: int, seq: int) -> bool:
        """Whether a pass goes on where the last one ended: with its cache, or with one token more and without."""
        if self.holds(cache):
            return True
        if batch != self.batch:
            return False
        return seq == self.seen + 1 if not cached else self._cache is None and int(cached) == self.seen


class Generation(Sequence):
    """A running `generate`: its own sequence, and those of other passes inside it.

    Args:
        host: what all substituted modules of the model share.
        entries: the steerings that are open on it.
        rows, length, mask: as the call of `generate` gives them; the length is settled by its first pass.
        resumes: whether it is given a cache.
    """

    def __init__(
        self, host: Any, entries: Iterable[Any], rows: int, length: int, mask: Tensor | None, resumes: bool = False
    ) -> None:
        super().__init__(entries, rows, length, mask)
        self.host, self._resumes, self._knows_start = host, resumes, False
        self.begun = False
        self._given = length
        self._prepares = self._prepared = False
        self._beside: list[Sequence] = []

    def prepare(self, ids: Any, mask: Any, inputs: Mapping[str, Any]) -> None:
        """Note that `generate` has prepared the inputs of a forward pass: the next one is its own.

        Args:
            ids: all tokens (or embeddings) that it holds, from which those of the pass were taken.
            mask: the mask over them, before the model's own form was made of it.
            inputs: of the pass.
        """
        self._prepares = self._prepared = True
        fed = tokens_in(inputs)
        if not self.begun and fed is not None and isinstance(ids, Tensor):
            self.begin(cached_length(inputs), fed.shape[1], ids.shape[1], padding_mask(mask))
            self.take(cache_in(inputs), fed.shape[0])
        self._note_rows(ids, padding_mask(mask), None if fed is None else fed.shape[1])

    def _note_rows(self, ids: Any, mask: Tensor | None, seq: int | None) -> None:
        """Note all ids of the rows, as `generate` holds them before each pass, in the order that beams are in by then.

        In chunks of a prompt they are not all there, nor where a cache came without the ids of its tokens.
        """
        self.row_ids, self.masks = None, {}
        scopes = [scope for entry in self.entries for scope in entry.token_scopes]
        if not scopes or seq is None or not (self._knows_start and _holds_ids(ids)) or ids.shape[1] < self._given:
            return
        self.row_ids = without_padding(ids, mask if mask is not None and mask.shape == ids.shape else None)
        masks = {scope.key: scope.select(self.row_ids)[:, -seq:] for scope in scopes}
        # With strides of their own: those of the whole rows grow, and compiled code would be compiled at every token.
        self.masks = {key: mask.clone(memory_format=torch.contiguous_format) for key, mask in masks.items()}

    def begin(self, cached: Any, seq: int, among: int, mask: Tensor | None) -> None:
        """Settle on the first pass how long the prompt is.

        It is as long as what is given to `generate`, and longer by what comes before: virtual tokens of prompt or
        prefix tuning, and an earlier turn in the cache where only new tokens are given.

        Args:
            cached: tokens in the cache.
            seq: tokens of the pass.
            among: tokens that `generate` has, candidates of an assistant included; fewer than the prompt's where it
                comes in chunks.
            mask: of the pass.
        """
        self.begun = True
        before = int(cached or 0)
        given = None if self.mask is None else self.mask.shape[1]
        if among >= self._given:
            self.length = self._given + max(before + seq - among, 0)
        elif given is not None:  # as `generate` tells them: the mask covers the cached tokens, the ids may not
            self.length = max(self._given, given)
        counted = not before or among >= self._given or given is not None
        self._knows_start = self.length == self._given and counted and not (self._resumes and cached is None)
        if mask is not None and mask.shape[1] >= self.length:
            self.mask = mask[:, : self.length]
        elif self.mask is not None:
            self.mask = F.pad(self.mask, (self.length - self.mask.shape[1], 0), value=1)[:, : self.length]

    def sequence_of(self, arguments: Mapping[str, Any], cached: Any, mask: Tensor | None) -> Sequence:
        """The sequence that a forward pass belongs to."""
        fed, cache = tokens_in(arguments), cache_in(arguments)
        batch, seq = (self.batch, 1) if fed is None else fed.shape[:2]
        if not self._prepared:
            self.row_ids, self.masks = None, {}
        if self._is_own(cache, cached, batch, seq):
            if not self.begun:
                self.begin(cached, seq, self._given, mask)
            self.take(cache, batch)
            return self
        sequence = next((each for each in self._beside if each.goes_on(cache, cached, batch, seq)), None)
        if sequence is None:
            length = int(cached or 0) + seq
            mask = mask[:, :length] if mask is not None and mask.shape[1] >= length else None
            sequence = Sequence(self.entries, self.rows if batch == self.batch else batch, length, mask)
        sequence.take(cache, batch)
        self._beside = [sequence, *(each for each in self._beside if each is not sequence)][:BESIDE]
        return sequence

    def _is_own(self, cache: Any, cached: Any, batch: int, seq: int) -> bool:
        prepared, self._prepared = self._prepared, False
        if not self.begun or self.holds(cache):
            return True
        if self._prepares:
            past = int(cached or 0)
            # Without caching some hybrid models get a new, empty cache for every pass, and the whole sequence.
            return prepared and (self._cache is None or past == self.seen or (not past and seq > self.seen))
        # A loop of the user's own: where its passes hold the whole sequence, one that holds the same is as good.
        return self.goes_on(cache, cached, batch, seq) or (not cached and batch == self.batch and seq == self.seen)


def tokens_in(arguments: Mapping[str, Any]) -> Tensor | None:
    """The tokens of a forward pass, or their embeddings, as far as its arguments tell."""
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    return tokens if isinstance(tokens, Tensor) and tokens.ndim >= 2 else None


def _holds_ids(tokens: Any) -> bool:
    """Whether tokens are ids, `[batch, seq]`, and not embeddings."""
    return isinstance(tokens, Tensor) and tokens.ndim == 2 and not tokens.is_floating_point()


def ids_in(arguments: Mapping[str, Any]) -> Tensor | None:
    """The token ids of a forward pass, `[batch, seq]`; None where it is given embeddings."""
    fed = tokens_in(arguments)
    return fed if _holds_ids(fed) else None


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache of a forward pass, or None."""
    return next((arguments[name] for name in CACHES if arguments.get(name) is not None), None)


def padding_mask(mask: Any) -> Tensor | None:
    """A mask that names pads, `[batch, tokens]`; None for any other."""
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def cached_length(arguments: Mapping[str, Any]) -> Any:
    """Tokens that the cache of a forward pass holds: 0 without one, None where it does not say."""
    cache = cache_in(arguments)
    if cache is None:
        return 0
    if arguments.get("past_key_values") is cache and isinstance(cache, (tuple, list)):  # remote code without Cache
        return cache[0][0].shape[-2] if cache and cache[0] is not None else 0
    keys = getattr(cache, "key_cache", None)
    if isinstance(keys, list) and not any(isinstance(k, Tensor) and k.numel() for k in keys):
        return 0  # transformers 4: before its first forward pass a hybrid cache (Jamba) counts the rows of the batch
    try:
        length = cache.get_seq_length()
        # A static cache gives its own counter, which it moves on in place during the forward pass.
        return length.clone() if isinstance(length, Tensor) else length
    except (AttributeError, ValueError, TypeError, IndexError):  # recurrent states count no tokens
        return None
