"""Linear artificial tomography: the main axis of differences whose sign is drawn by chance."""

import hashlib
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from steerfn.discover._engine import DiscoveryOptions, Method, StateRows, Sums, along, discover, top_axis
from steerfn.model import Model, Tokenizer
from steerfn.values import DataError, Sites, SteeringVector, integer, public, static, struct


@struct
class Swapped:
    """Sums of the differences of pairs, and their sum once some pairs are swapped (`x x^T` has no sign)."""

    differences: Sums
    total: Tensor


@struct
class Lat(Method):
    """See `lat`."""

    seed: int = static(default=0)
    name: ClassVar[str] = "lat"
    paired: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("seed", self.seed)

    def init(self, width: int) -> Swapped:
        return Swapped(Sums.zero(width, second=True), torch.zeros(width, dtype=torch.float64))

    def update(self, state: Swapped, positive: StateRows, negative: StateRows) -> Swapped:
        differences = positive.values - negative.values
        return Swapped(
            state.differences.plus(differences), state.total + signs(positive.index, self.seed) @ differences
        )

    def finalize(self, state: Swapped) -> Tensor:
        count = int(state.differences.count)
        if count < 2:
            raise DataError(
                f"lat centres the differences, which leaves nothing of {count} pair; pass at least 2 pairs, or use "
                "sf.pca or sf.mean_difference."
            )
        mean = state.total / count
        covariance = state.differences.second - torch.outer(mean, mean)
        return along(top_axis(covariance, count), state.differences.mean)

    def about(self) -> dict[str, Any]:
        return {"seed": self.seed}


def signs(index: Tensor, seed: int) -> Tensor:
    """-1 for the pairs that are swapped, 1 for the others, by the numbers of the pairs and the seed alone.

    Of the pairs 2k and 2k + 1 chance swaps one. Tosses for every pair alone would now and then swap nearly all or
    nearly none of a few pairs, and centring would then remove the signal.
    """
    swapped = [(hashlib.sha256(f"{seed} {i // 2}".encode()).digest()[0] + i) % 2 for i in index.tolist()]
    return 1.0 - 2.0 * torch.tensor(swapped, dtype=torch.float64)


@public
def lat(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any = None,
    sites: Sites | None = None,
    **options: Unpack[DiscoveryOptions],
) -> SteeringVector:
    """Linear artificial tomography: `v = u <u, d>`, `u` the first principal component of `s_i (p_i - n_i)`, centred.

    `p_i` and `n_i` are the hidden states of pair `i`. `s_i = +-1` swaps the texts of half of the pairs at random, so
    the axis is found without the labels; they give its sign and length: `d = mean_i (p_i - n_i)`. Which pairs are
    swapped depends on `seed` and on their numbers alone (of every two neighbours one), not on batches or workers.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: as many that show its opposite, each the counterpart of a positive.
        sites: one or several; an int means `resid_post`.
        options: what every method takes, see `DiscoveryOptions`; another `seed` swaps other pairs.

    Returns:
        A vector in float32, in units of the residual stream.

    Raises:
        DataError: fewer than 2 pairs, unequal counts, an empty text, or a position outside a text.
        SiteError: a site that the model lacks.

    Source: Zou et al. 2023, "Representation Engineering".

    Example:
        >>> import steerfn as sf
        >>> w = sf.discover.lat(model, tokenizer, happy, sad, sites=14, position="mean", seed=1)
        >>> w.cosine(v) > 0.9  # with the mean difference of the same texts
        True
    """
    return discover(Lat(options.get("seed", 0)), model, tokenizer, positive, negative, sites, **options)
