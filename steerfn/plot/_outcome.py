"""The outcome of a protocol as a dot plot."""

from typing import Any

from steerfn._errors import DataError, SteerError
from steerfn.evaluate import Estimate, Outcome
from steerfn.evaluate._outcome import STEERED
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._shown import percent, shown_p
from steerfn.evaluate._shown import shown as digits
from steerfn.plot._figure import figure, finished, heading, lines_of, ready
from steerfn.plot._forest import Row, forest
from steerfn.plot._labels import shown


def outcome(outcome: Outcome, *, width: float = 6.0) -> Any:
    """Every figure of a protocol with its interval: steered, unsteered and controls, one under the other.

    Each figure has a panel of its own, since they differ in scale. The steered model's marker is filled where its
    paired difference from the unsteered model is shown (`Outcome.is_shown`), and where the protocol compares no such
    difference; it is open where the difference is not shown. The p-value of that difference, after Holm's correction,
    is at the right.

    Args:
        outcome: from `benchmark` or a protocol.
        width: of the figure, in inches.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        SteerError: not an outcome, or matplotlib is not installed.
        DataError: one without any figure.

    Example:
        >>> import steerfn as sf
        >>> found = sf.benchmark("caa", model, tokenizer, v, "myopic-reward.json")  # doctest: +SKIP
        >>> sf.plot.outcome(found).savefig("caa.png")  # doctest: +SKIP
    """
    if not isinstance(outcome, Outcome):
        raise SteerError(
            f"plot.outcome takes an Outcome, not a {type(outcome).__name__}; make one with "
            "sf.benchmark(name, model, tokenizer, v, data)."
        )
    columns = {STEERED: outcome.figures, UNSTEERED: outcome.baseline, **outcome.controls}
    names = dict.fromkeys(name for found in columns.values() for name in found)
    if not names:
        raise DataError("This outcome has no figures, so there is nothing to draw.")
    figure(width)  # what is wrong with it is known before anything is measured by it
    ready(width)
    panels = {
        shown(name, 80): [
            _row(outcome, name, condition, found[name], look)
            for look, (condition, found) in enumerate(columns.items())
            if name in found
        ]
        for name in names
    }
    levels = {percent(found[name].level) for found in columns.values() for name in found}
    title = f"{outcome.protocol} ({outcome.source})"
    said = f"{', '.join(sorted(levels))} intervals"
    if any(outcome.effects.get(UNSTEERED, {})):
        said += ". Open: no difference from unsteered shown"
    heads = len(lines_of(title, width - 0.2)) + len(lines_of(said, width - 0.2))
    made = forest(panels, width, heads, dict.fromkeys(panels, ""), zero=False)
    heading(made, title, said)
    return finished(made)


def _row(outcome: Outcome, name: str, condition: str, found: Estimate, look: int) -> Row:
    compared = condition == STEERED and name in outcome.effects.get(UNSTEERED, {})
    note = f"{digits(found.mean)}, n = {found.n}"
    if not compared:
        return Row(condition, found, True, look, note)
    return Row(condition, found, outcome.is_shown(name), look, f"{note}, {shown_p(outcome.adjusted[UNSTEERED, name])}")
