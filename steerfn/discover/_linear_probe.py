"""Linear probe: the weights of a logistic regression that tells the sides apart."""

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from steerfn.discover._engine import DiscoveryOptions, Kept, RowPair, along, discover, logistic
from steerfn.model import Model, Tokenizer
from steerfn.values import Sites, SteeringVector, finite_number, public, static, struct


@struct
class LinearProbe(Kept):
    """See `linear_probe`."""

    l2: float = static(default=1.0)
    name: ClassVar[str] = "linear_probe"

    def __post_init__(self) -> None:
        finite_number("l2", self.l2, above=0, hint="the penalty is l2/2 |w|^2")

    def finalize(self, state: RowPair) -> Tensor:
        return self.outcome(state)[0]

    def outcome(self, state: RowPair) -> tuple[Tensor, dict[str, Any]]:
        rows = state.sort()
        positive, negative = rows.positive.values, rows.negative.values
        weights, bias = logistic(positive, negative, self.l2)
        difference = positive.mean(0) - negative.mean(0)
        squared = weights @ weights
        # The bias is scaled like the weights, so <h, v> + bias keeps its sign. At the optimum <w, d> is not negative.
        scale = float(weights @ difference / squared) if squared > 0 else 1.0
        return along(weights, difference), {"bias": scale * bias}

    def about(self) -> dict[str, Any]:
        return {"l2": self.l2}


@public
def linear_probe(
    model: Model,
    tokenizer: Tokenizer,
    positive: Any,
    negative: Any = None,
    sites: Sites | None = None,
    *,
    l2: float = 1.0,
    **options: Unpack[DiscoveryOptions],
) -> SteeringVector:
    """A logistic regression's weights: `v = u <u, d>` with `u = w / |w|`, `d = mean(h(positive)) - mean(h(negative))`.

    `w, b = argmin sum_i log(1 + exp(-y_i (<h_i, w> + b))) + l2/2 |w|^2`, with `y = 1` for the positives and -1 for the
    negatives: scikit-learn's `LogisticRegression(C=1 / l2)`, minimised by Newton's method in float64. Every activation
    is kept in memory.

    `v.metadata["bias"]` has, by the site's name, `b` scaled like `w`, so the vector is the classifier too:
    `sf.probe(v, bias)` is true where the regression says positive, that is, where `<h, v> + bias > 0`.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        positive: texts that show the behaviour; or a contrast set or `(positive, negative)` pairs in place of both.
        negative: texts that show its opposite, in any number.
        sites: one or several; an int means `resid_post`.
        l2: the penalty; with a large one the weights lie along the mean difference.
        options: what every method takes, see `DiscoveryOptions`.

    Returns:
        A vector in float32, in units of the residual stream, with the bias by site in its metadata.

    Raises:
        DataError: an `l2` that is no number above 0 or with which the regression does not converge, no texts on one
            side, an empty one, or a position outside a text.
        SiteError: a site that the model lacks.

    Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".

    Example:
        >>> import steerfn as sf
        >>> w = sf.linear_probe(model, tokenizer, happy, sad, sites=14, position="mean")
        >>> bias = w.metadata["bias"]["resid_post[14]"]
        >>> h = sf.activations(model, tokenizer, happy + sad, 14, position="mean")[sf.resid_post[14]]
        >>> (h @ w[14] + bias > 0).tolist()
        [True, True, True, False, False, False]
        >>> op = sf.when(sf.probe(w, bias), sf.add(w, -1.0))
    """
    return discover(LinearProbe(l2), model, tokenizer, positive, negative, sites, **options)
