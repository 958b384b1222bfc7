"""Findings in sentences that claim no more than the test has shown."""

import math
from collections.abc import Mapping, Sequence

from steerfn.evaluate._pairs import Pair
from steerfn.output import format_number, format_p, percent, quantity

RANDOM = "a random vector of the same length"
COUNTED = {"unsteered": "comparison", "random": "claim", "vector": "comparison"}
"""What Holm's correction counts: beside random vectors the claims of an effect, which stand against both."""
BARE = ("share", "probability")
"""What a table calls numbers that have no unit: behind one it would read as if it were."""


def sentences(pairs: Sequence[Pair], units: Mapping[str, str]) -> list[str]:
    """A sentence for every metric and comparison; what was found against random vectors goes with what it qualifies."""
    lines = []
    random = {(pair.metric, pair.treatment): pair for pair in pairs if pair.against == "random"}
    plain = {(pair.metric, pair.treatment): pair for pair in pairs if pair.against == "unsteered"}
    for pair in pairs:
        key = pair.metric, pair.treatment
        if pair.against == "unsteered" and pair.significant and key in random:
            lines.append(f"{sentence(pair, units)[:-1]}, {_beside(pair, random[key], units)}.")
        elif pair.against != "random" or key not in plain:
            lines.append(sentence(pair, units))
    return lines


def sentence(pair: Pair, units: Mapping[str, str]) -> str:
    """One comparison, in a sentence."""
    control = _condition_name(pair)
    between = f"{control} and {pair.treatment}" if pair.against == "vector" else f"{pair.treatment} and {control}"
    what, over = f"{pair.metric} between {between}", f"Holm over {quantity(pair.family, COUNTED[pair.against])}"
    if pair.n < 2:
        return (
            f"Nothing can be said of {what}: {pair.n} of {quantity(pair.n + pair.left_out, 'prompt')} "
            f"{'has a number' if pair.n == 1 else 'have numbers'} under both."
        )
    if pair.n < pair.needed:
        return f"n = {pair.n} prompts cannot carry a difference in {what} ({over}); use at least {pair.needed}."
    if pair.sparse:
        return (
            f"Only {pair.n} of {pair.n + pair.left_out} prompts have a number of {what}: nothing is said of those that "
            f"are left ({_apart(pair, units)})."
        )
    if pair.few_draws:
        return (
            f"{quantity(pair.draws, 'random vector')} with numbers cannot carry a difference in {what} ({over}), "
            f"since others may do more or less; run controls=5 or more (against {_those(pair)}: {_apart(pair, units)})."
        )
    if not pair.carried:
        enough = math.ceil(pair.family / pair.alpha)
        return (
            f"{pair.resamples} sign flips cannot carry a difference in {what} ({over}); use at least "
            f"resamples={enough}."
        )
    if not pair.significant:
        it = control if pair.against == "vector" else "it"
        return f"No difference in {what} could be shown ({pair.treatment} against {it}: {_numbers(pair, units)})."
    verb = "raises" if pair.difference.estimate.mean > 0 else "lowers"
    amount, ends = _size(pair, units)
    return f"{pair.treatment} {verb} {pair.metric} by {amount} against {control} ({_test_figures(pair, ends)})."


def _beside(pair: Pair, random: Pair, units: Mapping[str, str]) -> str:
    """The clause that qualifies a difference to the unsteered model by the comparison with random vectors."""
    if random.n < 2:
        return f"but {RANDOM} could not be compared: it has no numbers"
    verb = "raises" if pair.difference.estimate.mean > 0 else "lowers"
    same_way = (pair.difference.estimate.mean > 0) == (random.difference.estimate.mean > 0)
    if random.significant and same_way:
        amount, ends = _size(random, units)
        return f"and {verb} it by {amount} against {RANDOM} ({_test_figures(random, ends)})"
    if random.sparse:
        return (
            f"but only {random.n} of {random.n + random.left_out} prompts have a number that could be compared with "
            f"that of {RANDOM}"
        )
    if random.few_draws:
        return (
            f"but whether {RANDOM} does as much, {quantity(random.draws, 'random vector')} with numbers cannot tell; "
            f"run controls=5 or more (against {_those(random)}: {_apart(random, units)})"
        )
    how = f"which {verb} it more" if random.significant else "as far as could be shown"
    return f"but is no better than {RANDOM}, {how} (against that: {_numbers(random, units, same_way)})"


def _those(pair: Pair) -> str:
    return "that one" if pair.draws == 1 else "those"


def _condition_name(pair: Pair) -> str:
    return {"unsteered": "the unsteered model", "random": RANDOM, "vector": pair.control}[pair.against]


def _numbers(pair: Pair, units: Mapping[str, str], hint: bool = True) -> str:
    """The signed difference with its interval and test, and a hint where more random vectors could show it."""
    estimate = pair.percent or pair.difference.estimate
    unit = _unit(pair, units)
    ends = f"{format_number(estimate.low)} to {format_number(estimate.high)}{unit}"
    return f"{format_number(estimate.mean)}{unit}, {_test_figures(pair, ends, hint)}"


def _apart(pair: Pair, units: Mapping[str, str]) -> str:
    """The signed difference and how many prompts it is of, where nothing was tested."""
    return f"{format_number((pair.percent or pair.difference.estimate).mean)}{_unit(pair, units)}, n = {pair.n}"


def _size(pair: Pair, units: Mapping[str, str]) -> tuple[str, str]:
    """The size of a difference whose direction is told, and its interval."""
    estimate = pair.percent or pair.difference.estimate
    unit = _unit(pair, units)
    if estimate.low * estimate.high <= 0:  # the percentage's interval, where the control's mean is uncertain
        return (
            f"{format_number(abs(estimate.mean))}{unit}",
            f"{format_number(estimate.low)} to {format_number(estimate.high)}{unit}",
        )
    low, high = sorted((abs(estimate.low), abs(estimate.high)))
    return f"{format_number(abs(estimate.mean))}{unit}", f"{format_number(low)}-{format_number(high)}{unit}"


def _unit(pair: Pair, units: Mapping[str, str]) -> str:
    if pair.percent is not None:
        return " %"
    unit = units.get(pair.metric, "")
    is_scale = any(sign.isdigit() for sign in unit)  # "-1 to 1"
    return f" {unit}" if unit and unit not in BARE and not is_scale else ""


def _test_figures(pair: Pair, ends: str, hint: bool = False) -> str:
    left = f", {quantity(pair.left_out, 'prompt')} without a number left out" if pair.left_out else ""
    beside = f", {pair.draws} random vectors" if pair.draws else ""
    level = percent(pair.difference.estimate.level)
    more = "; more of them, with controls=, could show it" if hint and _short_of_draws(pair) else ""
    return f"{level} CI {ends}, {format_p(pair.adjusted)}, n = {pair.n}{left}{beside}, Holm{more}"


def _short_of_draws(pair: Pair) -> bool:
    """Whether prompts show a difference, and the random vectors are far enough for one question and not for all."""
    estimate, prompts = pair.difference.estimate, pair.difference.p * pair.family < pair.alpha
    return prompts and pair.among < pair.alpha <= pair.adjusted and estimate.low * estimate.high > 0
