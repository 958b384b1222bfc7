"""Predictions as a function of one strength a site, and their derivative at 0, in forward and reverse mode."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steerfn.operators import Scope, add, at, chain
from steerfn.run._predict import Predictor
from steerfn.values import ModelError, SteeringVector


@dataclasses.dataclass(frozen=True)
class SlopeItem:
    """A prompt and its targets as rows to run; the last token of a target is predicted and need not be run.

    Attributes:
        rows: token ids and how many of them are prompt; two targets of one token share their row.
        reads: (row, place, token, sign) of every log-probability that counts.
    """

    rows: tuple[tuple[tuple[int, ...], int], ...]
    reads: tuple[tuple[int, int, int, float], ...]

    @classmethod
    def of(cls, sides: Sequence[tuple[list[int], int]]) -> "SlopeItem":
        """From the token ids of a prompt with each of its one or two targets, and where the target begins."""
        keys = [(tuple(ids[:-1]), start) for ids, start in sides]
        rows = tuple(dict.fromkeys(keys))
        reads = tuple(
            (rows.index(key), t - 1, ids[t], sign)
            for key, (ids, start), sign in zip(keys, sides, (1.0, -1.0), strict=False)
            for t in range(start, len(ids))
        )
        return cls(rows, reads)

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(len(ids) for ids, _ in self.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Slopes:
    """Predictions of items as a function of one strength a site, and their derivative at 0, in two ways.

    Attributes:
        predict: the model.
        parts: a vector of one direction for each site.
        scope: the tokens to steer; None: all.
        dtype: of the strengths.
    """

    predict: Predictor
    parts: tuple[SteeringVector, ...]
    scope: Scope | None
    dtype: torch.dtype

    def target_log_probs(self, alphas: Tensor, items: Sequence[SlopeItem]) -> Tensor:
        """`log p` of each item's target, or its difference; `alphas` is `[sites]` or `[sites, rows]`."""
        op = chain(*(add(part, alpha) for part, alpha in zip(self.parts, alphas.unbind(), strict=True)))
        rows = [row for item in items for row in item.rows]
        first = list(itertools.accumulate((len(item.rows) for item in items), initial=0))
        reads = [(first[i] + r, *read, i) for i, item in enumerate(items) for r, *read in item.reads]
        places = sorted({place for _, place, *_ in reads})
        logits = self.predict(
            op if self.scope is None else at(self.scope, op),
            [ids for ids, _ in rows],
            torch.tensor(places),
            prompts=[start for _, start in rows],
        )
        device = logits.device
        row, place, token = (
            torch.tensor(each, device=device)
            for each in zip(*((r, places.index(p), token) for r, p, token, _, _ in reads), strict=True)
        )
        chosen = logits[row, place]
        likely = chosen.gather(-1, token.unsqueeze(-1)).squeeze(-1) - chosen.logsumexp(-1)
        signs = torch.zeros(len(items), len(reads), dtype=likely.dtype)
        for column, (_, _, _, sign, item) in enumerate(reads):
            signs[item, column] = sign
        return (signs.to(device) * likely).sum(-1)  # not `@`, which runs in half precision under autocast

    def reverse(self, items: Sequence[SlopeItem]) -> tuple[Tensor, Tensor]:
        """One strength for each site and item, and one pass back: rows know nothing of each other's strengths."""
        device = self.predict.device
        owner = torch.tensor([i for i, item in enumerate(items) for _ in item.rows], device=device)
        with torch.enable_grad():
            alphas = torch.zeros(len(self.parts), len(items), dtype=self.dtype, device=device, requires_grad=True)
            predicted = self.target_log_probs(alphas[:, owner], items)
            if not predicted.requires_grad:
                raise ModelError(
                    "This model computes its logits without gradients, so it is not differentiable in reverse mode; "
                    "pass mode='forward'."
                )
            (slopes,) = torch.autograd.grad(predicted.sum(), alphas)
        return predicted.detach(), slopes

    def forward(self, items: Sequence[SlopeItem]) -> tuple[Tensor, Tensor]:
        """`jvp` along the strength of each site, all sites at once by `vmap`: one pass with a tangent for each site."""
        device, count = self.predict.device, len(self.parts)
        zeros = torch.zeros(count, dtype=self.dtype, device=device)

        def along(tangent: Tensor) -> tuple[Tensor, Tensor]:
            both = torch.func.jvp(lambda alphas: self.target_log_probs(alphas, items), (zeros,), (tangent,))
            return both[0], both[1]

        try:
            with torch.no_grad(), _PlainAttention():
                axes = torch.eye(count, dtype=self.dtype, device=device)
                predicted, slopes = torch.func.vmap(along)(axes)
                return predicted[0], slopes
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"This model does something that has no forward-mode rule under vmap ({str(error).splitlines()[0]}); "
                "pass mode='reverse', which gives the same numbers."
            ) from error


class _PlainAttention(TorchFunctionMode):
    """Attention by its formula: torch's fused kernels have no forward-mode rule.

    It holds for the calling thread only; `torch.nn.attention.sdpa_kernel` would change the kernels of every thread.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        chosen = _attention if func is F.scaled_dot_product_attention else func
        return chosen(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`softmax(q k^T scale + mask) v`, as `torch.nn.functional.scaled_dot_product_attention`."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (repeat(each, "... head t d -> ... (head group) t d", group=groups) for each in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    # The lowest number rather than -inf: a padding token that sees nothing must not become NaN, which would spread.
    lowest = torch.finfo(scores.dtype).min
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, lowest)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, lowest)
    elif attn_mask is not None:
        scores = (scores + attn_mask).clamp_min(lowest)
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value
