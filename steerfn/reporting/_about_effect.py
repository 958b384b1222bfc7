"""The sections of a report on what the vector does: effect, side effects, controls, and texts to look at."""

import html
import math
from collections.abc import Mapping

from steerfn._page import table
from steerfn.evaluate import Difference, Estimate, Pair
from steerfn.evaluate._comparison_html import texts
from steerfn.evaluate._sentences import sentence
from steerfn.evaluate._shown import percent, shown
from steerfn.evaluate._vector_tables import means_table, p_cell
from steerfn.plot import comparison
from steerfn.reporting._findings import Findings
from steerfn.reporting._pictures import picture
from steerfn.reporting._text import items, paragraph
from steerfn.reporting._words import counted

WARNING = (
    "These texts were written by a language model that was steered, and may be wrong, offensive or harmful. They are "
    "shown as they came, so that a reviewer can see what the numbers stand for."
)

PAIRS = ("metric", "minus", "difference", "in percent", "p (Holm)", "d_z", "n", "verdict")
SAME = (
    "The logits of one prompt were computed before and after all of these measurements: they are the same, bit for "
    "bit. Steering left nothing behind."
)
OTHER = (
    "The logits of one prompt were computed before and after all of these measurements, and they differ: either the "
    "device does not compute the same twice, or something changed the model."
)


def effect(found: Findings) -> str:
    """Section 4: the vector against the unsteered model and random vectors."""
    result, about = found.effect, found.about
    level = next((percent(pair.difference.estimate.level) for pair in result.pairs), "95 %")
    seeds = f" with {counted(len(result.seeds), 'seed')} each" if about["sampled"] else ", decoded greedily"
    headers, means = means_table(result.means, result.conditions, result.units, len(set(result.unit_of)))
    pairs = [_pair(pair, result.units.get(pair.metric)) for pair in result.pairs]
    return "\n".join(
        [
            paragraph(
                f"{counted(len(result.prompts), 'prompt')}{seeds}, at most {about['max_new_tokens']} tokens, generated "
                f"without steering, with the vector at alpha {found.alpha:g}, and with "
                f"{counted(about['controls'], 'random vector')} of the same sites, lengths and strength, "
                f"{len(result.slots)} to a prompt. Prompts: "
                f"{about['prompts_from']}. Prompts are the units of all statistics."
            ),
            items(result.summary().splitlines()),
            picture(
                comparison(result),
                f"Differences with their {level} intervals.",
                "Differences of the metrics with their intervals, as in the table below.",
            ),
            "<h3>Means</h3>",
            paragraph(f"With {level} intervals over prompts, in brackets."),
            table(headers, means, numeric=range(1, len(headers))),
            "<h3>Differences</h3>",
            table(PAIRS, pairs, numeric=range(2, len(PAIRS) - 1)),
            paragraph(
                f"Vector minus the other, with {level} intervals in brackets. p (Holm), beside the unsteered model: of "
                "a paired sign-flip test, two-sided. Beside random vectors: of the claim of an effect, which is the "
                "largest of that p-value, of sign flips against random vectors, and of the vector as one more random "
                f"vector. Both are corrected for {counted(len(result.metrics), 'metric')}. Intervals beside random "
                "vectors know that those differ among themselves. d_z: mean difference over the standard deviation of "
                "the differences. n: prompts with a number on both sides."
            ),
        ]
    )


def side_effects(found: Findings) -> str:
    """Section 5: what steering costs."""
    costs = found.costs
    columns: dict[str, Mapping[str, Estimate]] = {"steered": costs.figures, "unsteered": costs.baseline}
    columns = {name: each for name, each in {**columns, **costs.controls}.items() if each}
    names = dict.fromkeys(name for each in columns.values() for name in each)
    rows = [[name, *(_with_interval(each.get(name)) for each in columns.values())] for name in names]
    tests = [
        [name, against, *_tested(difference, costs.adjusted[against, name], costs.is_shown(name, against))]
        for against, each in costs.effects.items()
        for name, difference in each.items()
    ]
    parts = [
        paragraph(
            f"Measured on {counted(found.about['passages'], 'passage')} of plain text "
            f"{found.about['passages_from']}, which should have nothing to do with the behaviour; repetition and "
            "distinct n-grams on the texts of section 4. Means, with their intervals in brackets, beside "
            f"the mean of {counted(costs.draws, 'random vector')} of section 4."
        ),
        table(["figure", *columns], rows, numeric=range(1, len(columns) + 1)),
    ]
    if tests:
        headers = ["figure", "steered minus", "difference", "interval", "p (Holm)", "verdict"]
        parts += ["<h3>Differences</h3>", table(headers, tests, numeric=range(2, 5))]
    if costs.notes:
        parts.append(items(costs.notes))
    parts.append(paragraph(f"Protocol: {costs.source}."))
    return "\n".join(parts)


def controls(found: Findings) -> str:
    """Section 6: what would make the effect a mistake."""
    draws = counted(found.about["controls"], "random vector")
    random = [sentence(pair, found.effect.units) for pair in found.effect.pairs if pair.against == "random"]
    return "\n".join(
        [
            paragraph(
                f"Any push of this size changes what a model writes. {draws} of the same sites, lengths and strength "
                f"{'was' if found.about['controls'] == 1 else 'were'} run on the same prompts. What is no larger than "
                "their effect is no effect of what the vector means."
            ),
            items(random) if random else "",
            "<h3>The model is what it was</h3>",
            paragraph(SAME if found.unchanged else OTHER, strong=not found.unchanged),
            "<h3>New text</h3>",
            paragraph(
                f"{counted(len(found.overlap), 'prompt')} of the effect {'is' if len(found.overlap) == 1 else 'are'} "
                f"also in the data, first {found.overlap[0]!r}."
                if found.overlap
                else "No prompt of the effect is in the data, or the beginning of a text of it.",
                strong=bool(found.overlap),
            ),
        ]
    )


def examples(found: Findings) -> str:
    """Section 7: texts with and without steering."""
    n = len(found.examples)
    return "\n".join(
        [
            f'<p class="warning"><strong>Content note.</strong> {html.escape(WARNING)}</p>',
            paragraph(
                f"{counted(n, 'prompt')} of {len(found.effect.prompts)}, taken at even distances, not chosen for what "
                "came of them. What differs is marked. All texts are in the JSON of this report."
            ),
            texts(found.examples),
        ]
    )


def _with_interval(found: Estimate | None) -> str:
    if found is None or not found.n:
        return "-"
    return _around(shown(found.mean), found, "")


def _around(mean: str, found: Estimate, unit: str) -> str:
    """A mean and its interval, which stays on one line."""
    ends = f"({shown(found.low)} to {shown(found.high)}{unit})".replace(" ", "\u00a0")
    return f"{mean}{unit}" if math.isnan(found.low) else f"{mean}{unit} {ends}"


def _pair(pair: Pair, unit: str | None) -> list[str]:
    """A comparison of section 4 as cells."""
    found, change = pair.difference.estimate, pair.percent
    return [
        f"{pair.metric} [{unit}]" if unit else pair.metric,
        "random" if pair.against == "random" else pair.control,
        _with_interval(found),
        _around(shown(change.mean), change, "\u00a0%") if change else "-",
        p_cell(pair.adjusted),
        shown(pair.difference.effect),
        str(pair.n),
        pair.verdict,
    ]


def _tested(found: Difference, adjusted: float, is_shown: bool) -> list[str]:
    mean = found.estimate
    higher = "higher" if mean.mean > 0 else "lower"
    return [
        shown(mean.mean),
        f"{shown(mean.low)} to {shown(mean.high)}",
        p_cell(adjusted),
        higher if is_shown else "not shown",
    ]
