"""Logistic regression with an L2 penalty, to the last digits."""

import math

import torch
from torch import Tensor

from steerfn.values import DataError

STEPS = 200
"""Newton steps; ten are usual."""
TOLERANCE = 1e-20
"""The last step gains less than this part of the loss: weights were right to about ten digits before it."""


def logistic(positive: Tensor, negative: Tensor, l2: float) -> tuple[Tensor, float]:
    """The `w` and `b` that minimise `sum_i log(1 + exp(-y_i (<x_i, w> + b))) + l2/2 |w|^2`, with `y = +-1`.

    Newton's method, where a step that gains too little is halved. It works in the span of the centred rows, which `w`
    never leaves, so wide activations of few texts are cheap.

    Args:
        positive: rows with `y = 1`, `[n, width]`, float64.
        negative: rows with `y = -1`.

    Raises:
        DataError: no convergence.
    """
    x = torch.cat([positive, negative])
    y = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).to(x.dtype)
    center = x.mean(0)
    left, scales, span = torch.linalg.svd(x - center, full_matrices=False)
    known = scales > scales[0] * max(x.shape) * torch.finfo(x.dtype).eps
    span = span[known]
    # The last feature is 1, its weight the intercept, which is not penalised.
    features = torch.cat([left[:, known] * scales[known], torch.ones(len(x), 1, dtype=x.dtype)], 1)
    penalty = torch.full(features.shape[1:], l2, dtype=x.dtype)
    penalty[-1] = 0.0

    def loss_at(weights: Tensor) -> Tensor:
        fit = torch.nn.functional.logsigmoid(y * (features @ weights)).sum()
        return (penalty * weights**2).sum() / 2 - fit

    weights = torch.zeros_like(penalty)
    weights[-1] = math.log(len(positive) / len(negative))
    loss = loss_at(weights)
    for _ in range(STEPS):
        margin = y * (features @ weights)
        wrong = torch.sigmoid(-margin)
        gradient = penalty * weights - features.T @ (y * wrong)
        curvature = wrong * torch.sigmoid(margin)
        hessian = features.T @ (curvature.unsqueeze(1) * features) + torch.diag(penalty)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if failed:
            break
        step = torch.cholesky_solve(gradient.unsqueeze(1), factor).squeeze(1)
        gain = gradient @ step
        if gain <= TOLERANCE * loss:
            weights = weights - step
            w = weights[:-1] @ span
            return w, float(weights[-1] - w @ center)
        size = 1.0
        while (reached := loss_at(weights - size * step)) > loss - 0.1 * size * gain + 1e-14 * loss:
            size /= 2
        weights, loss = weights - size * step, reached
    raise DataError(
        f"The linear probe did not converge with l2={l2:g} on {len(positive)} positive and {len(negative)} negative "
        "texts; pass a larger l2."
    )
