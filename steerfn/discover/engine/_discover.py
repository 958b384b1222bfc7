"""The one road from texts to a vector that every method takes."""

import difflib
import os
from collections.abc import Iterable
from typing import Any, TypedDict

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from steerfn._errors import DataError
from steerfn._fingerprint import fingerprint
from steerfn._numbers import plain_number
from steerfn._site import Site
from steerfn._vector import SteeringVector
from steerfn.discover.engine._collect import job, states_by_site
from steerfn.discover.engine._contrast import contrast
from steerfn.discover.engine._keeping import Keeping, qualities
from steerfn.discover.engine._method import Method
from steerfn.discover.engine._workers import Workers, finished
from steerfn.reading import Position


class Options(TypedDict, total=False):
    """What every method takes.

    Attributes:
        position: "last" real token (the default), "mean" over tokens, "answer" (the first token in which a pair
            differs), an index, or a function of the token ids.
        batch_size: texts at once; "auto" batches by tokens and halves when memory runs out.
        chat: True wraps texts in the chat template; None does so where there is one; False (the default) takes
            them as they are.
        progress: show a progress bar on stderr.
        explain: print which token is read of the first texts, by its text.
        checkpoint: a file in which the run keeps how far it has come, every few seconds and when it is interrupted.
            The same call continues from it and ends with the same vector, bit for bit; then the file is deleted.
        workers: who reads the texts: `sf.torchrun()`, `sf.ray_workers(...)`, or None for this process alone.
        quality: also measure how good the direction is at each site, cross-validated, and put it into the metadata
            (`sf.quality(v)` reads it back). All activations are kept for it: memory grows with texts times sites.
        seed: another seed divides the texts into other folds for `quality`; `lat` draws with it, too.
    """

    position: Position
    batch_size: int | str
    chat: bool | None
    progress: bool
    explain: bool
    checkpoint: str | os.PathLike[str] | None
    workers: Workers | None
    quality: bool
    seed: int


def discover(
    method: Method,
    model: Any,
    tokenizer: Any,
    positive: Any,
    negative: Any,
    sites: Any,
    *,
    position: Position = "last",
    batch_size: int | str = "auto",
    chat: bool | None = False,
    progress: bool = True,
    explain: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    workers: Workers | None = None,
    quality: bool = False,
    seed: int = 0,
    **unknown: Any,
) -> SteeringVector:
    """The vector that a method makes of two sides of texts, with its history as metadata."""
    if unknown:
        raise TypeError(_unknown(method.name, unknown))
    checked_seed(seed)
    if not isinstance(quality, bool):
        raise DataError(f"quality is True or False, not {quality!r:.80}.")
    texts = contrast(tokenizer, positive, negative, position=position, chat=chat, paired=method.paired, explain=explain)
    work = job(model, texts, Keeping(method) if quality else method, sites, batch_size)
    with finished(work, model, progress=progress, checkpoint=checkpoint, workers=workers) as run:
        found = states_by_site(work, run)
        outcomes = {site: _outcome(work.method, site, state) for site, state in found.items()}
        directions = {site: direction for site, (direction, _) in outcomes.items()}
        about = {"model": fingerprint(model), "method": method.name, **texts.about, **method.about()}
        for site, (_, known) in outcomes.items():
            for name, value in known.items():
                about.setdefault(name, {})[site.name] = value
        if quality:
            about["quality"] = qualities(method, found, directions, seed, progress)
        return SteeringVector({site: direction.float() for site, direction in directions.items()}, about)


def _unknown(method: str, given: Iterable[str]) -> str:
    known = sorted(Options.__annotations__)
    meant = [(name, difflib.get_close_matches(name, known, n=1)) for name in given]
    named = ", ".join(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else "") for name, close in meant)
    return f"{method} has no option {named}; those of every method are {', '.join(known)}."


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
