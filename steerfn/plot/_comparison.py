"""A comparison of vectors as a forest plot."""

from typing import Any

from steerfn._errors import DataError, SteerError
from steerfn.evaluate import Pair, VectorComparison
from steerfn.evaluate._shown import percent, shown_p
from steerfn.plot._figure import figure, finished, heading, lines_of, ready
from steerfn.plot._forest import Row, forest, letters_of
from steerfn.plot._labels import shown

LOOKS = {"unsteered": 0, "random": 1, "vector": 2}


def comparison(result: VectorComparison, *, width: float = 6.5) -> Any:
    """Every difference of a comparison with its interval, a panel for each metric.

    A marker is filled where the difference is shown (`Pair.significant`: the p-value after Holm's correction over all
    comparisons, the interval, and enough to carry it), and open where it is not. At the right the p-value after the
    correction, or why there is none. Differences are treatment minus control; 0 is dashed. Colours and shapes tell what
    a vector was compared with: the unsteered model, "random" vectors as long as it, another vector.

    Args:
        result: from `compare_vectors`.
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
    figure(width)  # what is wrong with it is known before anything is measured by it
    ready(width)
    found: dict[str, list[Pair]] = {}
    for pair in result.pairs:
        found.setdefault(pair.metric, []).append(pair)
    # A name in two metrics' titles would be one panel: names of metrics differ.
    panels = {shown(name, 60): [_row(pair, letters_of(width)) for pair in pairs] for name, pairs in found.items()}
    units = {shown(name, 60): result.units.get(name, "") for name in found}
    labels = {name: f"Difference ({unit})" if unit else "Difference" for name, unit in units.items()}
    first = result.pairs[0]
    title = (
        f"Differences with {percent(first.difference.estimate.level)} intervals over prompts. Filled: shown; open: not "
        f"shown. p after Holm, {first.family} comparisons"
    )
    made = forest(panels, width, len(lines_of(title, width - 0.2)), labels, zero=True)
    heading(made, title)
    return finished(made)


def _row(pair: Pair, letters: int) -> Row:
    p = pair.verdict if pair.n < 2 or not pair.carried else shown_p(pair.adjusted)
    room = letters - 3
    control = pair.against if pair.against != "vector" else shown(pair.control, max(6, room // 2))
    label = f"{shown(pair.treatment, max(6, room - len(control)))} − {control}"
    return Row(label, pair.difference.estimate, pair.significant, LOOKS[pair.against], f"{p}, n = {pair.n}")
