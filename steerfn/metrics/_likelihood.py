"""How likely a model finds texts after their prompts, under a few operators."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from steerfn._steer import warn_of_empty
from steerfn.metrics._answers import sharing
from steerfn.operators import Operator
from steerfn.scoring import Scorer

TOGETHER = 256
"""Tokens of texts that share a row with their prompt: their logits over the whole vocabulary are there at once."""


def log_probs(
    model: Any,
    answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]] | None],
    ops: Sequence[Operator | None],
    chosen: Sequence[int] | None = None,
) -> Float[np.ndarray, "ops answers"]:
    """The log-probability of each text after its prompt, the sum over its tokens, in nats.

    A prompt runs once for several of its texts, and a text that occurs twice is scored once.

    Args:
        model: the model. Unchanged.
        answers: prompts and texts as token ids, as `answers_of` gives them.
        ops: the operators, None for the unsteered model.
        chosen: which answers are wanted; None: all.

    Returns:
        NaN where there is no text, or it is not wanted.

    Raises:
        SteerError: an operator that does not fit the model.
    """
    found = np.full((len(ops), len(answers)), np.nan)
    known = [(i, each) for i in (range(len(answers)) if chosen is None else chosen) if (each := answers[i]) is not None]
    if not known:
        return found
    groups = sharing([each for _, each in known], TOGETHER)
    scorer = Scorer(model, [item for item, _ in groups], ops)
    for part in scorer.run():
        for g, values in zip(part.items, part.log_probs, strict=True):
            for column, whose in zip(values.T, groups[g][1], strict=True):
                for i in whose:
                    found[:, known[i][0]] = column
    warn_of_empty(scorer.selections)
    return found
