"""Principal components: of the differences of pairs, or of all activations together."""

from typing import Any, ClassVar, Literal

from torch import Tensor
from typing_extensions import Unpack

from steerfn.discover._engine import (
    DiscoveryOptions,
    Method,
    Scatter,
    StateRows,
    SummedMethod,
    Sums,
    along,
    discover,
    top_axis,
)
from steerfn.model import Model, Tokenizer
from steerfn.values import DataError, Sites, SteeringVector, public, struct


@struct
class DifferencePca(Method):
    """See `pca`, `on="differences"`."""

    name: ClassVar[str] = "pca"
    paired: ClassVar[bool] = True

    def init(self, width: int) -> Sums:
        return Sums.zero(width, second=True)

    def update(self, state: Sums, positive: StateRows, negative: StateRows) -> Sums:
        return state.plus(positive.values - negative.values)

    def finalize(self, state: Sums) -> Tensor:
        # Not centred: the mean of the differences is the signal.
        return along(top_axis(state.second, int(state.count)), state.mean)

    def about(self) -> dict[str, Any]:
        return {"on": "differences"}


@struct
class PooledPca(SummedMethod):
    """See `pca`, `on="pooled"`."""

    name: ClassVar[str] = "pca"
    sums: ClassVar[Any] = Scatter

    def finalize(self, state: Scatter) -> Tensor:
        return along(top_axis(state.pooled, int(state.count)), state.sides.difference)

    def about(self) -> dict[str, Any]:
        return {"on": "pooled"}


@public
def pca(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any = None,
    sites: Sites | None = None,
    *,
    on: Literal["differences", "pooled"] = "differences",
    **options: Unpack[DiscoveryOptions],
) -> SteeringVector:
    """The first principal component: `v = u <u, d>` with `d = mean(h(positive)) - mean(h(negative))`.

    With `p_i` and `n_i` the hidden states `h` of the texts of pair `i`, `u` is the unit vector with the largest

        on="differences"  `mean_i <u, p_i - n_i>^2` over pairs, not centred: centring would remove the mean of the
                          differences, which is the signal
        on="pooled"       variance of `<u, h>` over all texts of both sides, around their common mean

    Sign and length come from the data: an alpha of 1 moves a negative as far along `u` as the positives are. Where
    the sides differ less than the texts do in other ways, `u` is the axis of something else and `v` is short. Exact
    eigenvectors of second moments that are summed in float64, so the same call gives the same bits.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: texts that show its opposite; for `on="differences"` as many, each the counterpart of a positive.
        sites: one or several; an int means `resid_post`.
        on: "differences" of pairs, or "pooled" activations.
        options: what every method takes, see `DiscoveryOptions`.

    Returns:
        A vector in float32, in units of the residual stream; zero where the sides do not differ along the axis.

    Raises:
        DataError: another `on`, unequal counts for differences, no texts on one side, or a position outside a text.
        SiteError: a site that the model lacks.

    Source: Tigges et al. 2023, "Linear Representations of Sentiment", and repeng (Vogel 2024).

    Example:
        >>> import steerfn as sf
        >>> w = sf.pca(model, tokenizer, happy, sad, sites=14, position="mean")
        >>> w.cosine(v) > 0.9  # with the mean difference of the same texts
        True
    """
    methods = {"differences": DifferencePca, "pooled": PooledPca}
    if not isinstance(on, str) or on not in methods:
        raise DataError(f"on must be 'differences' (of pairs) or 'pooled' (both sides together), not {on!r}.")
    return discover(methods[on](), model, tokenizer, positive, negative, sites, **options)
