"""The outcome of a protocol as a dot plot."""

from typing import Any

from steerfn._errors import DataError, SteerError
from steerfn.evaluate import Estimate, Outcome
from steerfn.evaluate._outcome import RANDOM, STEERED
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._shown import percent, shown_p
from steerfn.evaluate._shown import shown as digits
from steerfn.plot._figure import finished, heading, lines_of, width_of
from steerfn.plot._forest import Row, forest
from steerfn.plot._labels import distinct

UNITS = {
    "slope": "nats per unit of alpha",
    "spread": "nats per unit of alpha",
    "letter_bias": "nats per unit of alpha",
    "cross_entropy": "nats per token",
    "kl": "nats per token",
    "perplexity": "perplexity",
    "perplexity_ratio": "times the unsteered perplexity",
    "anti_steerable": "share of items",
    "accuracy": "share of questions",
    "probability": "share of prompts",
    "mass": "probability",
    "p_match": "probability",
    "p_match_given_order": "probability",
    "p_first_letter": "probability",
    "p_correct": "probability",
    "mc1": "share of questions",
    "mc2": "probability",
    "mc3": "share of true answers",
    "f1": "F1, 0 to 1",
    "harmful_refused": "share of prompts",
    "harmless_refused": "share of prompts",
    "repetition": "share of n-grams",
    "distinct_n": "share of n-grams",
    "score": "0 to 2",
    "concept": "0 to 2",
    "instruction": "0 to 2",
    "fluency": "0 to 2",
} | {
    f"{way}_{side}_{name}": unit
    for way in ("ablated", "added")
    for side in ("harmful", "harmless")
    for name, unit in (("refused", "share of prompts"), ("log_odds", "nats"), ("kl", "nats"))
}
"""The units of the protocols' figures."""


def outcome(outcome: Outcome, *, ax: Any = None, title: str | None = None, width: float = 6.0) -> Any:
    """Every figure of a protocol with its interval: steered, unsteered and controls, one under the other.

    Each figure has a panel of its own, since they differ in scale. The steered model's marker is filled where its
    paired difference from the unsteered model is shown (`Outcome.is_shown`), and where the protocol compares no such
    difference; it is open where the difference is not shown. The p-value of that difference, after Holm's correction,
    is at the right.

    Args:
        outcome: from `benchmark` or a protocol.
        ax: an axes of yours, from plt.subplots(), in whose place the plot stands.
        title: what stands above it instead; "" is nothing.
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
    width = width_of(width, ax)
    labels = distinct(list(names), 80)
    panels = {
        labels[name]: [
            _row(outcome, name, condition, found[name], look)
            for look, (condition, found) in enumerate(columns.items())
            if name in found
        ]
        for name in names
    }
    levels = {percent(found[name].level) for found in columns.values() for name in found}
    said = [f"{outcome.protocol} ({outcome.source})", f"{', '.join(sorted(levels))} intervals"]
    if any(outcome.effects.get(UNSTEERED, {})):
        said[1] += ". Open: no difference from unsteered shown"
    if RANDOM in outcome.controls:
        said[1] += f". random: the mean of {outcome.draws} random vector{'s' * (outcome.draws > 1)}"
    said = said if title is None else [title]
    heads = sum(len(lines_of(each, width - 0.2)) for each in said)
    units = {labels[name]: UNITS.get(name, "") for name in names}
    made = forest(panels, width, heads, units, zero=False, ax=ax)
    heading(made, *said)
    return finished(made)


def _row(outcome: Outcome, name: str, condition: str, found: Estimate, look: int) -> Row:
    compared = condition == STEERED and name in outcome.effects.get(UNSTEERED, {})
    note = f"{digits(found.mean)}, n = {found.n}"
    if not compared:
        return Row(condition, found, True, look, note)
    return Row(condition, found, outcome.is_shown(name), look, f"{note}, {shown_p(outcome.adjusted[UNSTEERED, name])}")
