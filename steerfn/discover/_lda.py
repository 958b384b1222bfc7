"""Linear discriminant: the mean difference, seen through the spread within the sides."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from steerfn.discover._engine import DiscoveryOptions, Scatter, SummedMethod, along, discover
from steerfn.model import Model, Tokenizer
from steerfn.values import DataError, Sites, SteeringVector, finite_number, public, static, struct

FLAT = 1e-12
"""Less spread than this part of the mean square of the activations is the rounding of the model."""


@struct
class Lda(SummedMethod):
    """See `lda`."""

    shrinkage: float | str = static(default="oas")
    name: ClassVar[str] = "lda"
    sums: ClassVar[Any] = Scatter

    def __post_init__(self) -> None:
        if self.shrinkage != "oas":
            finite_number("shrinkage", self.shrinkage, least=0, most=1, hint="'oas' computes it from the data")

    def finalize(self, state: Scatter) -> Tensor:
        return self.outcome(state)[0]

    def outcome(self, state: Scatter) -> tuple[Tensor, dict[str, Any]]:
        within, square = state.within, float(state.second.trace())
        spread = float(within.trace())
        if spread <= FLAT * square:
            raise DataError(
                f"lda divides by the variance within the sides, which is zero for {_counts(state)} texts; pass "
                "more texts that differ, or use sf.mean_difference, which one of each is enough for."
            )
        known = {"oas": oas(within, int(state.count))} if isinstance(self.shrinkage, str) else {}
        amount = known["oas"] if known else float(self.shrinkage)
        shrunk, difference, width = shrink(within, amount), state.sides.difference, len(within)
        least = width * torch.finfo(within.dtype).eps * square
        if amount * spread / width <= least:  # else no eigenvalue can be that small
            rank = int((torch.linalg.eigvalsh(shrunk) > least).sum())
            if rank < width:
                raise DataError(
                    f"The covariance within the sides is singular with shrinkage={amount:g}: {_counts(state)} texts "
                    f"give it rank {rank} of {width}; use shrinkage='oas' or a larger one, or pass more texts."
                )
        solved = torch.cholesky_solve(difference.unsqueeze(1), torch.linalg.cholesky(shrunk)).squeeze(1)
        return along(solved, difference), known

    def about(self) -> dict[str, Any]:
        return {"shrinkage": self.shrinkage}


def shrink(covariance: Tensor, amount: float) -> Tensor:
    """`(1 - a) S + a tr(S)/d I`."""
    shrunk = (1 - amount) * covariance
    shrunk.diagonal().add_(amount * covariance.trace() / len(covariance))
    return shrunk


def oas(covariance: Tensor, count: int) -> float:
    """The oracle approximating shrinkage of a covariance of `count` rows, for Gaussian data.

    `min(1, (tr(S^2) + tr(S)^2) / ((n + 1) (tr(S^2) - tr(S)^2 / d)))`, Chen et al. 2010, equation 23 without its
    terms in 2/d, as scikit-learn has it.
    """
    width = len(covariance)
    squares, trace = float(covariance.square().sum()), float(covariance.trace())
    above, below = squares + trace**2, (count + 1) * (squares - trace**2 / width)
    return 1.0 if below <= 0 else min(1.0, above / below)


def _counts(state: Scatter) -> str:
    return f"{int(state.sides.positive.count)} positive and {int(state.sides.negative.count)} negative"


@public
def lda(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any = None,
    sites: Sites | None = None,
    *,
    shrinkage: float | Literal["oas"] = "oas",
    **options: Unpack[DiscoveryOptions],
) -> SteeringVector:
    """Fisher's linear discriminant: `v = u <u, d>`, `u` along `S^-1 d`, `d = mean(h(positive)) - mean(h(negative))`.

    `S = (1 - a) C + a tr(C)/width I`, with `C` the covariance of the texts of both sides, each around the mean of its
    side (divided by their number), and `a` the shrinkage. Directions in which texts of one side differ much among
    themselves count less; `shrinkage=1` gives the mean difference. From sums in float64.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: texts that show its opposite, in any number.
        sites: one or several; an int means `resid_post`.
        shrinkage: from 0 to 1, or "oas", which computes it from the data: `v.metadata["oas"]` has it by site.
        options: what every method takes, see `DiscoveryOptions`.

    Returns:
        A vector in float32, in units of the residual stream.

    Raises:
        DataError: another `shrinkage`, one too small for so few texts, texts that do not differ within the sides, no
            texts on one side, an empty one, or a position outside a text.
        SiteError: a site that the model lacks.

    Source: Fisher 1936; Chen et al. 2010, "Shrinkage Algorithms for MMSE Covariance Estimation".

    Example:
        >>> import steerfn as sf
        >>> w = sf.lda(model, tokenizer, happy, sad, sites=14, position="mean")
        >>> 0 < w.metadata["oas"]["resid_post[14]"] < 1
        True
    """
    return discover(Lda(shrinkage), model, tokenizer, positive, negative, sites, **options)
