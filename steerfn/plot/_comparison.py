"""A comparison of vectors as a forest plot."""

from collections.abc import Mapping
from typing import Any

from steerfn._errors import DataError, SteerError
from steerfn.evaluate import Pair, VectorComparison
from steerfn.evaluate._shown import percent, shown_p
from steerfn.plot._figure import finished, heading, lines_of, width_of
from steerfn.plot._forest import Row, forest, letters_of
from steerfn.plot._labels import distinct

LOOKS = {"unsteered": 0, "random": 1, "vector": 2}


def comparison(result: VectorComparison, *, ax: Any = None, title: str | None = None, width: float = 6.5) -> Any:
    """Every difference of a comparison with its interval, a panel for each metric.

    A marker is filled where the difference is shown (`Pair.significant`: the p-value after Holm's correction, the
    interval, and enough to carry it), and open where it is not. At the right the p-value after the correction, or why
    there is none; against random vectors it is that of an effect, which needs both comparisons. Differences are
    treatment minus control; 0 is dashed. Colours and shapes tell what a vector was compared with: the unsteered model,
    "random" vectors as long as it, another vector.

    Args:
        result: from `compare_vectors`.
        ax: an axes of yours, from plt.subplots(), in whose place the plot stands.
        title: what stands above it instead; "" is nothing.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        SteerError: not a comparison of vectors, or matplotlib is not installed.
        DataError: one without any comparison.

    Example:
        >>> import steerfn as sf
        >>> result = sf.compare_vectors(model, tokenizer, {"v1": v1, "v2": v2}, prompts, "sentiment")  # doctest: +SKIP
        >>> sf.plot.comparison(result).savefig("comparison.png")  # doctest: +SKIP
    """
    if not isinstance(result, VectorComparison):
        raise SteerError(
            f"plot.comparison takes a VectorComparison, not a {type(result).__name__}; make one with "
            "sf.compare_vectors(model, tokenizer, {'v1': v1}, prompts, metrics)."
        )
    if not result.pairs:
        raise DataError("This comparison compares nothing, so there is nothing to draw.")
    width = width_of(width, ax)
    found: dict[str, list[Pair]] = {}
    for pair in result.pairs:
        found.setdefault(pair.metric, []).append(pair)
    metrics, letters = distinct(list(found), 60), letters_of(width)
    rooms = {
        "unsteered": letters - 12,
        "random": letters - 9,
        "vector": (letters - 3) // 2,
    }  # beside " − unsteered", ...
    names = {against: distinct(result.vectors, max(6, room)) for against, room in rooms.items()}
    panels = {metrics[metric]: [_row(pair, names[pair.against]) for pair in pairs] for metric, pairs in found.items()}
    units = {metrics[metric]: result.units.get(metric, "") for metric in found}
    labels = {name: f"Difference ({unit})" if unit else "Difference" for name, unit in units.items()}
    level = percent(result.pairs[0].difference.estimate.level)
    said = (
        f"Differences with {level} intervals. Filled: shown; open: not shown. Circle: from the unsteered model; "
        "square: from random vectors, where p is that of an effect, which needs both; triangle: from another vector. "
        "p after Holm"
    )
    said = said if title is None else title
    made = forest(panels, width, len(lines_of(said, width - 0.2)), labels, zero=True, ax=ax)
    heading(made, said)
    return finished(made)


def _row(pair: Pair, names: Mapping[str, str]) -> Row:
    p = pair.verdict if pair.n < 2 or not pair.carried else shown_p(pair.adjusted)
    control = pair.against if pair.against != "vector" else names[pair.control]
    label = f"{names[pair.treatment]} − {control}"
    return Row(label, pair.difference.estimate, pair.significant, LOOKS[pair.against], f"{p}, n = {pair.n}")
