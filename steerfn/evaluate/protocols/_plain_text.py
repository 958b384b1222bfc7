"""What steering does to a model's reading of plain text: cross-entropy, and the divergence from the unsteered model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn._text import Text, encode
from steerfn.discover.search._predict import Predictor
from steerfn.evaluate.protocols._run import Run
from steerfn.operators import Operator, identity
from steerfn.reading._budget import limit_of

TOKENS = 512
"""Tokens of one pass, padding included: their logits over the whole vocabulary are all kept for a while."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """Numbers of each text, the mean over its tokens but the first; NaN for a text of one token.

    Attributes:
        cross_entropy: `-log p(token | tokens before)`, in nats, `[operators, texts]`.
        kl: `KL(unsteered || steered)` of the next-token distribution, in nats, `[operators, texts]`.
        tokens: how many tokens were predicted, `[texts]`.
    """

    cross_entropy: np.ndarray
    kl: np.ndarray
    tokens: np.ndarray


def reading(
    run: Run, model: Any, tokenizer: Any, texts: Sequence[Text], ops: Sequence[Operator | None], max_tokens: int
) -> Reading:
    """Read every text under every operator.

    For scopes a text's first token is the prompt and all after it is generated, so `sf.generated` and `sf.everywhere`
    steer all that predicts something.

    Args:
        run: the options; `chat` is not among what counts, since text is read as it is.
        model: the model.
        tokenizer: its tokenizer.
        texts: the texts.
        ops: the operators; None is the unsteered model.
        max_tokens: what comes after so many tokens of a text is left out.
    """
    from tqdm import tqdm

    predict = Predictor.of(model, tokenizer)
    rows = [ids[:max_tokens] for ids in encode(tokenizer, texts, False)]
    order = sorted((i for i in range(len(rows)) if len(rows[i]) > 1), key=lambda i: len(rows[i]))
    limit = limit_of(run.batch_size, "texts")
    entropy, kl = (np.full((len(ops), len(rows)), np.nan) for _ in range(2))
    with (
        torch.no_grad(),
        tqdm(total=len(order), desc="Reading texts", unit="text", disable=not run.progress, leave=False) as bar,
    ):
        while order:
            longest = len(rows[order[-1]])
            some = [order.pop() for _ in range(min(limit or max(1, TOKENS // longest), len(order)))]
            batch, places = [rows[i] for i in some], torch.arange(longest - 1)
            plain = predict(identity, batch, places, [1] * len(batch))
            for c, op in enumerate(ops):
                logits = plain if op is None else predict(op, batch, places, [1] * len(batch))
                for r, i in enumerate(some):
                    entropy[c, i], kl[c, i] = _of_row(plain[r], logits[r], rows[i])
            bar.update(len(some))
    return Reading(entropy, kl, np.array([len(row) - 1 for row in rows]))


def _of_row(plain: Tensor, logits: Tensor, ids: Sequence[int]) -> tuple[float, float]:
    """The cross-entropy and the divergence of one text, from logits `[longest - 1, vocabulary]`."""
    n = len(ids) - 1
    usual, changed = plain[:n].log_softmax(-1), logits[:n].log_softmax(-1)
    following = torch.tensor(ids[1:], device=changed.device)
    kl = torch.nn.functional.kl_div(changed, usual, reduction="none", log_target=True).sum(-1)
    return -float(changed[torch.arange(n), following].double().mean()), float(kl.double().mean().clamp_min(0))
