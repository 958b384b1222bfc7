"""Mean difference: the simplest direction, and at the same site the strongest."""

from typing import Any

import torch
from torch import Tensor

from steerfn._activations import Position, read
from steerfn._errors import DataError
from steerfn._fingerprint import fingerprint
from steerfn._site import Site
from steerfn._text import as_texts
from steerfn._types import checked
from steerfn._vector import SteeringVector


@checked
def mean_difference(
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
) -> SteeringVector:
    """The difference of means: `v = mean(h(positive)) - mean(h(negative))` at each site.

    Sums are kept in float64, so neither batch size nor order matters beyond rounding of the model itself. The
    texts need not be pairs, nor as many of one as of the other.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour.
        negative: texts that show its opposite.
        sites: one or several; an int means `resid_post`.
        position: "last" real token, "mean" over tokens, an index, or a function of the token ids.
        batch_size: texts at once; "auto" batches by tokens.
        chat: True wraps texts in the chat template; None does so where there is one; False takes them as they are.
        progress: show a progress bar on stderr.

    Returns:
        A vector in float32, in units of the residual stream, with the model's fingerprint, the method and the
        counts in its metadata.

    Raises:
        DataError: no texts on one side, an empty one, or a position outside a text.
        SiteError: a site that the model lacks.

    Source: Marks and Tegmark 2023; Rimsky et al. 2024, "Contrastive Activation Addition".

    Example:
        >>> import steerfn as sf
        >>> happy, sad = ["I love this day."], ["I hate this day."]
        >>> v = sf.mean_difference(model, tokenizer, positive=happy, negative=sad, sites=14)  # doctest: +SKIP
    """
    sides = {"positive": as_texts(positive, "positive"), "negative": as_texts(negative, "negative")}
    if sides["positive"] == sides["negative"]:
        raise DataError("positive and negative are the same texts, so their difference is zero; pass opposites.")
    options = {"position": position, "batch_size": batch_size, "chat": chat, "progress": progress}
    means = {
        name: _mean(read(model, tokenizer, texts, sites, what=name, **options), len(texts))
        for name, texts in sides.items()
    }
    directions = {site: (mean - means["negative"][site]).float() for site, mean in means["positive"].items()}
    counts = {name: len(texts) for name, texts in sides.items()}
    where = position if isinstance(position, (str, int)) else getattr(position, "__name__", "function")
    known = {
        "model": fingerprint(model),
        "method": "mean_difference",
        "counts": counts,
        "position": where,
        "chat": bool(chat),
    }
    return SteeringVector(directions, known)


def _mean(batches: Any, count: int) -> dict[Site, Tensor]:
    sums: dict[Site, Tensor] = {}
    for _, states in batches:
        for site, state in states.items():
            part = state.cpu().to(torch.float64).sum(0)
            sums[site] = sums[site] + part if site in sums else part
    return {site: total / count for site, total in sums.items()}
