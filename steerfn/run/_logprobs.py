"""The log-probabilities of tokens under a steered model."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfn.operators import Operator
from steerfn.run._generate import steer_rows
from steerfn.run._text import input_device

ROWS = 256
"""Places whose log-probabilities are computed at once: each has one for every token of the vocabulary."""


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token that was chosen, or that the prompt has, under the steered model.

    Of the model's own distribution, before bias, penalties, temperature, structure and sampling.

    Attributes:
        token: its id.
        logprob: its log-probability.
        top: the most probable tokens in its place, with theirs.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, tokens: Tensor, top: int) -> list[TokenLogprob]:
    """The log-probabilities of tokens `[n]` under logits `[n, vocabulary]`.

    Example:
        >>> import torch
        >>> [one] = token_logprobs(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), 1)
        >>> round(one.logprob, 3)
        -0.693
    """
    values = logits.float().log_softmax(-1)
    own = values.gather(-1, tokens[:, None].to(values.device))[:, 0].tolist()
    best = values.topk(min(top, values.shape[-1]), -1)
    columns = zip(tokens.tolist(), own, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(token, _finite(each), tuple(zip(ids, map(_finite, many), strict=True)))
        for token, each, ids, many in columns
    ]


def _finite(value: float) -> float:
    """A number that JSON knows: -9999 where a token is impossible, as in OpenAI's API."""
    return value if math.isfinite(value) else -9999.0


def prompt_logprobs(model: Any, prompt: Sequence[int], op: Operator | None, top: int) -> list[TokenLogprob]:
    """The log-probabilities of each token of a prompt but the first, after those before it.

    Args:
        model: the model.
        prompt: token ids.
        op: the steering; None for none.
        top: how many of the most probable tokens to tell in each place.
    """
    ids = torch.tensor([prompt], device=input_device(model))
    with torch.no_grad(), steer_rows(model, op):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    parts = zip(logits.split(ROWS), ids[0, 1:].split(ROWS), strict=True)
    return [one for some, tokens in parts for one in token_logprobs(some, tokens, top)]
