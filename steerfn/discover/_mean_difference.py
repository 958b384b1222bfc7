"""Mean difference: the simplest direction."""

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from steerfn.discover._engine import DiscoveryOptions, SideSums, SummedMethod, discover
from steerfn.model import Model, Tokenizer
from steerfn.values import Sites, SteeringVector, public, struct


@struct
class MeanDifference(SummedMethod):
    """See `mean_difference`."""

    name: ClassVar[str] = "mean_difference"
    sums: ClassVar[Any] = SideSums

    def finalize(self, state: SideSums) -> Tensor:
        return state.difference


@public
def mean_difference(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any = None,
    sites: Sites | None = None,
    **options: Unpack[DiscoveryOptions],
) -> SteeringVector:
    """The difference of means: `v = mean(h(positive)) - mean(h(negative))` at each site.

    `h(text)` is the hidden state of a text at the tokens that `position` says, and the means are over texts. Sums are
    kept in float64, so neither batch size nor order matters beyond rounding of the model itself. The texts need not be
    pairs, nor as many of one as of the other.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: texts that show its opposite.
        sites: one or several; an int means `resid_post`.
        options: what every method takes, see `DiscoveryOptions`.

    Returns:
        A vector in float32, in units of the residual stream, with the model's fingerprint, the method and the
        counts in its metadata.

    Raises:
        DataError: no texts on one side, an empty one, or a position outside a text.
        SiteError: a site that the model lacks.

    Source: Marks and Tegmark 2023; Rimsky et al. 2024, "Contrastive Activation Addition".

    Example:
        >>> import steerfn as sf
        >>> v = sf.mean_difference(model, tokenizer, positive=happy, negative=sad, sites=14, position="mean")
        >>> v[14].shape, v.metadata["counts"]
        (torch.Size([576]), {'negative': 3, 'positive': 3})
    """
    return discover(MeanDifference(), model, tokenizer, positive, negative, sites, **options)
