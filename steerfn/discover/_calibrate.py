"""Calibration: how strong a vector may be before the model loses its language."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from steerfn.model import Model, Tokenizer, layout, unwrap_model
from steerfn.operators import Scope, add, as_vector, at
from steerfn.output import Result, Section, Table, progress_bar
from steerfn.run import Perplexity, Predictor, as_texts, encode, sum_norms
from steerfn.values import DataError, SteeringVector, finite_number, public, warn

WEAKEST, STRONGEST = 0.01, 10.0
"""The default range: pushes as long as these shares of the hidden state."""


@dataclasses.dataclass(frozen=True)
class Calibration(Result):
    """The strength that `calibrate` found.

    Attributes:
        alpha: the strength, with its sign.
        ratio: the perplexity ratio measured at it.
        curve: every (alpha, ratio) that was measured, by strength.
        perplexity: of the unsteered model on the texts.
        max_ratio: the bound.

    Example:
        >>> from steerfn.discover import Calibration
        >>> Calibration(2.0, 1.05, ((1.0, 1.01), (2.0, 1.05), (4.0, 1.6)), perplexity=21.0, max_ratio=1.1)
        Calibration(alpha 2, perplexity ratio 1.05 of at most 1.1, 3 strengths measured)
    """

    alpha: float
    ratio: float
    curve: tuple[tuple[float, float], ...]
    perplexity: float
    max_ratio: float

    _title = "Calibration"
    _what = "The calibration"

    def to_records(self) -> list[dict[str, Any]]:
        """One record for each strength that was measured."""
        return [{"alpha": alpha, "ratio": ratio} for alpha, ratio in self.curve]

    def _facts(self) -> dict[str, Any]:
        names = ("alpha", "ratio", "perplexity", "max_ratio")
        return {name: getattr(self, name) for name in names}

    def _sections(self) -> Sequence[Section]:
        about = (
            f"alpha {self.alpha:.4g}: perplexity ratio {self.ratio:.4g} of at most {self.max_ratio:g} (unsteered "
            f"perplexity {self.perplexity:.4g})"
        )
        rows = [
            [f"{alpha:.4g}", f"{ratio:.4g}", "<- chosen" if alpha == self.alpha else ""] for alpha, ratio in self.curve
        ]
        return [Table(["alpha", "ratio", ""], rows, about, numeric=(0, 1))]

    def __repr__(self) -> str:
        return (
            f"Calibration(alpha {self.alpha:.4g}, perplexity ratio {self.ratio:.4g} of at most {self.max_ratio:g}, "
            f"{len(self.curve)} strengths measured)"
        )


@public
def calibrate(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    texts: Any,
    *,
    max_ratio: float = 1.1,
    sign: int = 1,
    low: float | None = None,
    high: float | None = None,
    tolerance: float = 0.05,
    scope: Scope | None = None,
    batch_size: int | str = "auto",
    progress: bool = True,
) -> Calibration:
    """The largest alpha found whose perplexity on some texts stays under a bound.

    `ratio(alpha) = ppl(add(v, alpha)) / ppl(unsteered)` with the perplexity `ppl = exp(mean_t -log p_t)`, over all
    tokens of all texts but the first of each; padding is never counted. From `low` on alpha is doubled until the ratio
    exceeds the bound or `high` is reached; the last step is then bisected until it is no wider than `tolerance` times
    its lower end.

    What holds: the ratio at the returned alpha was measured and is within the bound, and so it was at every smaller
    alpha of the curve; at the next larger one it was not, unless alpha is `high`. Perplexity need not rise steadily:
    between the points of the curve, and beyond it, nothing is known.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vector: the vector to add.
        texts: plain text of the kind that must stay likely, not the texts that the vector was made from.
        max_ratio: the bound, above 1.
        sign: 1, or -1 to steer against the vector.
        low: the smallest strength to try, above 0. Default: a push of 1 % of the mean norm of the hidden state at
            the last tokens of the texts, at the site where the vector is longest in these terms.
        high: the largest. Default: a push of 10 times that norm.
        tolerance: the width of the last bracket, as a share of alpha.
        scope: the tokens to steer, as in `at`; each text counts as generated after its first token. Default: all.
        batch_size: texts at once; "auto" batches by tokens and halves when memory runs out.
        progress: show progress bars on stderr.

    Returns:
        The strength, its ratio, and every point that was measured.

    Raises:
        DataError: no texts, one of a single token, an option out of its range, a vector of zero, or no alpha in the
            range that satisfies the bound.
        SiteError: a site that the model lacks.

    Warns:
        SteerWarning: even `high` satisfies the bound.

    Example:
        >>> import steerfn as sf
        >>> texts = ["The committee met on Tuesday and adjourned at noon."]
        >>> calibration = sf.discover.calibrate(model, tokenizer, v, texts, low=0.5, tolerance=0.5)
        >>> calibration.alpha > 0.5 and calibration.ratio <= 1.1
        True
    """
    vector = as_vector(vector, "calibrate")
    finite_number(
        "max_ratio", max_ratio, above=1, hint="the unsteered model has 1, and 1.1 allows 10 % more perplexity"
    )
    if isinstance(sign, bool) or sign not in (1, -1):
        raise DataError(f"sign must be 1 or -1, not {sign!r}.")
    for name, value in (("low", low), ("high", high), ("tolerance", tolerance)):
        if value is not None:
            finite_number(name, value, above=0)
    if not any(vector.magnitude.values()):
        raise DataError("The vector is zero at all its sites, so no strength changes anything; pass another vector.")
    rows = encode(tokenizer, as_texts(texts, "texts"), False)
    for i, row in enumerate(rows):
        if len(row) < 2:
            raise DataError(
                f"texts[{i}] has 1 token, and the first token of a text is not predicted; pass longer texts."
            )
    vector = vector.resolve(layout(unwrap_model(model)).n_layers)
    if low is None or high is None:
        unit = 1 / relative_norm(model, vector, rows)
        low = unit * WEAKEST if low is None else low
        high = unit * STRONGEST if high is None else high
    if low > high:
        raise DataError(f"The range from low={low:.4g} to high={high:.4g} is empty; pass low below high.")
    measured = Perplexity.of(Predictor.of(model, tokenizer), rows, batch_size)
    with progress_bar("Calibrating", "strength", progress) as bar:
        usual = measured(None)
        if not math.isfinite(usual):
            raise DataError(
                f"The unsteered model's loss on the texts is {usual} a token; pass other texts, or a model in float32."
            )

        def ratio(strength: float) -> float:
            op = add(vector, sign * strength)
            value = _exp(measured(op if scope is None else at(scope, op)) - usual)
            bar.update()
            bar.set_postfix(alpha=f"{sign * strength:.4g}", ratio=f"{value:.4g}")
            return value

        strength, curve = search(ratio, max_ratio, low, high, tolerance)
    if strength is None:
        raise DataError(
            f"No alpha from {low:.4g} to {high:.4g} keeps the perplexity ratio within {max_ratio:g}: it is "
            f"{curve[low]:.4g} at the smallest; pass a smaller low or a larger max_ratio."
        )
    if strength == high:
        warn(
            f"The perplexity ratio is only {curve[high]:.4g} at the largest alpha tried, {sign * high:.4g}, so the "
            f"bound of {max_ratio:g} was not met; pass a larger high to look further."
        )
    points = tuple((sign * alpha, curve[alpha]) for alpha in sorted(curve))
    return Calibration(sign * strength, curve[strength], points, _exp(usual), max_ratio)


def search(
    ratio: Callable[[float], float], bound: float, low: float, high: float, tolerance: float
) -> tuple[float | None, dict[float, float]]:
    """The end of the bracket that satisfies the bound, None where `low` does not, and what was measured.

    A ratio that is no number exceeds every bound.
    """
    curve: dict[float, float] = {}

    def within(strength: float) -> bool:
        curve[strength] = ratio(strength)
        return curve[strength] <= bound

    if not within(low):
        return None, curve
    good, bad = low, None
    while good < high:
        reached = min(2 * good, high)
        if not within(reached):
            bad = reached
            break
        good = reached
    while bad is not None and bad - good > tolerance * good:
        middle = (good + bad) / 2
        if not good < middle < bad:  # neighbours among the floats
            break
        good, bad = (middle, bad) if within(middle) else (good, middle)
    return good, curve


def relative_norm(model: Any, v: SteeringVector, rows: Sequence[Sequence[int]]) -> float:
    """The norm of a vector over the mean norm of the hidden states at the last tokens of texts, where it is largest."""
    total, norms = sum_norms(model, rows, v.sites), v.magnitude
    return max((norms[site] * len(rows) / total[site] for site in v.sites if total[site]), default=0.0) or 1.0


def _exp(value: float) -> float:
    """`exp`, infinite where it overflows."""
    return math.exp(value) if value < 700 else math.inf if value == value else math.nan
