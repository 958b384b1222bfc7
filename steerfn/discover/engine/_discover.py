"""The one road from texts to a vector that every method takes."""

import os
from typing import Any, TypedDict

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn._chat_template import Chat
from steerfn._errors import DataError
from steerfn._fingerprint import fingerprint
from steerfn._keywords import only_switches
from steerfn._numbers import plain_number
from steerfn._site import Site
from steerfn._vector import SteeringVector
from steerfn.discover.engine._collect import job, states_by_site
from steerfn.discover.engine._contrast import contrast
from steerfn.discover.engine._folds import deciding_tokens, describe_texts
from steerfn.discover.engine._keeping import Keeping, qualities
from steerfn.discover.engine._method import Method
from steerfn.discover.engine._sides import two_sides
from steerfn.discover.engine._workers import Workers, finished
from steerfn.reading import Position, sinks_of


class Options(TypedDict, total=False):
    """What every method takes.

    Attributes:
        position: "last" real token (the default), "mean" over tokens without the model's attention sinks (such as the
            first token; the metadata says which), "mean_all" over every token, "answer" (the first token in which a
            pair differs), an index, a slice, range or list of indices (their mean), or a function of the token ids.
        batch_size: texts at once; "auto" batches by tokens and halves when memory runs out.
        chat: True wraps texts in the chat template; None does so where there is one; False (the default) takes
            them as they are; a mapping is True with switches of the template, which may also be keywords of their own
            beside `chat=True`: `enable_thinking=False`, `tools=[...]`.
        progress: show a progress bar on stderr.
        explain: print which token is read of the first texts, by its text.
        checkpoint: a file in which the run keeps how far it has come, every few seconds and when it is interrupted.
            The same call continues from it and ends with the same vector, bit for bit; then the file is deleted.
        workers: who reads the texts: `sf.torchrun()`, `sf.ray_workers(...)`, or None for this process alone.
        quality: also measure how good the direction is at each site, cross-validated, and put it into the metadata
            (`sf.quality(v)` reads it back). All activations are kept for it: memory grows with texts times sites.
        groups: which texts are of one kind (the answers of one question), for `quality` and for methods that choose by
            held-out texts: one label for each pair, or for each text, the positives first. A group is never on both
            sides of a division. Without it pairs stay together, where there are as many texts on either side.
        seed: another seed divides the texts into other folds for `quality`; `lat` draws with it, too.
    """

    position: Position
    batch_size: int | str
    chat: Chat
    progress: bool
    explain: bool
    checkpoint: str | os.PathLike[str] | None
    workers: Workers | None
    quality: bool
    groups: Any
    seed: int


def discover(
    method: Method,
    model: Any,
    tokenizer: Any,
    positive: Any,
    negative: Any = None,
    sites: Any = None,
    *,
    position: Position = "last",
    batch_size: int | str = "auto",
    chat: Chat = False,
    progress: bool = True,
    explain: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    workers: Workers | None = None,
    quality: bool = False,
    groups: Any = None,
    seed: int = 0,
    **unknown: Any,
) -> SteeringVector:
    """The vector that a method makes of two sides of texts, with its history as metadata."""
    chat = only_switches(method.name, tokenizer, chat, unknown, sorted(Options.__annotations__))
    checked_seed(seed)
    if not isinstance(quality, bool):
        raise DataError(f"quality is True or False, not {quality!r:.80}.")
    given = two_sides(positive, negative, sites)
    if given.sites is None:
        raise DataError("sites is missing: pass the layer to read at, such as sites=14, or several.")
    texts = contrast(
        tokenizer, given.positive, given.negative, position=position, chat=chat, paired=method.paired,
        pairs=given.paired, explain=explain,
    )  # fmt: skip
    tokens = deciding_tokens(texts.reads, texts.positive if texts.paired else None)
    known = describe_texts((texts.positive, texts.negative), tokens, groups, texts.paired)
    method = method.with_texts(known)
    work = job(model, texts, Keeping(method) if quality else method, given.sites, batch_size)
    with finished(work, model, progress=progress, checkpoint=checkpoint, workers=workers) as run:
        found = states_by_site(work, run)
        outcomes = {site: _outcome(work.method, site, state) for site, state in found.items()}
        directions = {site: direction for site, (direction, _) in outcomes.items()}
        about = {"model": fingerprint(model, weights=True), "method": method.name, **texts.about, **method.about()}
        sinks = work.planned.sinks
        if sinks is not None:
            about["sinks"] = sinks.describe(tokenizer)
        elif any(read.where[0] == 0 for read in texts.reads):
            sinks = sinks_of(model, texts.reads, work.planned.sites)
        if sinks is not None:
            sinks.warn_along(directions)
        if groups is not None:
            about["groups"] = max(known.units) + 1
        for site, (_, found_of_it) in outcomes.items():
            for name, value in found_of_it.items():
                about.setdefault(name, {})[site.name] = value
        if quality:
            about |= qualities(method, found, directions, known, seed, progress)
        return SteeringVector({site: direction.float() for site, direction in directions.items()}, about)


def checked_seed(seed: Any) -> int:
    """A seed.

    Raises:
        DataError: something else than an int.
    """
    seed = plain_number(seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"seed is an int, not {seed!r} of type {type(seed).__name__}.")
    return seed


def _outcome(method: Method, site: Site, state: Any) -> tuple[Tensor, dict[str, Any]]:
    """What a method makes of its state at one site; what goes wrong names the site."""
    numbers = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
    if not all(bool(torch.isfinite(leaf).all()) for leaf in numbers):
        raise DataError(
            f"The activations at {site} are not all finite numbers; load the model in bfloat16 or float32 "
            "(float16 overflows), or leave that site out."
        )
    try:
        return method.outcome(state)
    except DataError as error:
        raise DataError(f"At {site}: {error}") from None
