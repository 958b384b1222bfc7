"""The one road from texts to a vector that every method takes."""

from typing import Any, TypedDict

from steerfn._fingerprint import fingerprint
from steerfn._vector import SteeringVector
from steerfn.discover._collect import job, states_by_site
from steerfn.discover._contrast import contrast
from steerfn.discover._method import Method
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
    """

    position: Position
    batch_size: int | str
    chat: bool | None
    progress: bool
    explain: bool


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
) -> SteeringVector:
    """The vector that a method makes of two sides of texts, with its history as metadata."""
    texts = contrast(tokenizer, positive, negative, position=position, chat=chat, paired=method.paired, explain=explain)
    work = job(model, texts, method, sites, batch_size)
    found = states_by_site(work, work.run(model, progress=progress))
    directions = {site: method.finalize(state).float() for site, state in found.items()}
    return SteeringVector(directions, {"model": fingerprint(model), "method": method.name, **texts.about})
