"""The one road from texts to a vector that every method takes."""

import os
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor
from typing_extensions import TypedDict

from steerfn.datasets import deciding_tokens, describe_texts
from steerfn.discover._engine._contrast import contrast
from steerfn.discover._engine._job import job, states_by_site
from steerfn.discover._engine._keeping import Keeping, qualities
from steerfn.discover._engine._method import Method, check_finite
from steerfn.discover._engine._sides import two_sides
from steerfn.discover._engine._workers import Workers, run_job
from steerfn.run import Chat, Position, only_switches, sinks_of
from steerfn.values import DataError, Direction, Site, SteeringVector, check_shapes, fingerprint, integer
from steerfn.values.files import check_output


class DiscoveryOptions(TypedDict, total=False):
    """The keywords that every method takes.

    Attributes:
        position: "last" real token (the default), "mean" over tokens without the model's attention sinks (tokens of a
            norm far above the others', such as the first; the metadata says which), "mean_all" over every token,
            "answer" (the first token in which a pair differs), an index, a slice, range or list of indices (their
            mean), or a function of the token ids.
        batch_size: texts at once; "auto" batches by tokens and halves when memory runs out.
        chat: True wraps texts in the chat template; None does so where there is one; False (the default) takes
            them as they are; a mapping is True with switches of the template, which may also be keywords of their own
            beside `chat=True`: `enable_thinking=False`, `tools=[...]`.
        progress: show a progress bar on stderr.
        explain: print which token is read of the first texts, by its text.
        checkpoint: a file in which the run keeps how far it has come, every few seconds and when it is interrupted.
            The same call continues from it and ends with the same vector, bit for bit; then the file is deleted.
        workers: who reads the texts: `sf.workers.torchrun()`, `sf.workers.ray(...)`, or None for this process alone.
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
    chat = only_switches(method.name, tokenizer, chat, unknown, sorted(DiscoveryOptions.__annotations__))
    seed = integer("seed", seed)
    if checkpoint is not None:
        check_output(checkpoint, "The checkpoint")
    if not isinstance(quality, bool):
        raise DataError(f"quality must be True or False, not {quality!r:.80}.")
    sides = two_sides(positive, negative, sites)
    if sides.sites is None:
        raise DataError("sites is missing: pass the layer to read at, such as sites=14, or several.")
    texts = contrast(
        tokenizer, sides.positive, sides.negative, position=position, chat=chat, paired=method.paired,
        pairs=sides.paired, explain=explain,
    )  # fmt: skip
    tokens = deciding_tokens(texts.reads, texts.positive if texts.paired else None)
    known = describe_texts((texts.positive, texts.negative), tokens, groups, texts.paired)
    method = method.with_texts(known)
    work = job(model, texts, Keeping(method) if quality else method, sides.sites, batch_size)
    with run_job(work, model, progress=progress, checkpoint=checkpoint, workers=workers) as run:
        states = states_by_site(work, run)
        outcomes = {site: _outcome(work.method, site, state) for site, state in states.items()}
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
        for site, (_, facts) in outcomes.items():
            for name, value in facts.items():
                about.setdefault(name, {})[site.name] = value
        if quality:
            about |= qualities(method, states, directions, known, seed, progress)
        return SteeringVector({site: direction.float() for site, direction in directions.items()}, about)


@check_shapes
def _outcome(method: Method, site: Site, state: Any) -> tuple[Direction, dict[str, Any]]:
    """The direction and metadata of a method at one site; errors name the site."""
    check_finite(site, *(leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)))
    try:
        return method.outcome(state)
    except DataError as error:
        raise DataError(f"At {site}: {error}") from None
