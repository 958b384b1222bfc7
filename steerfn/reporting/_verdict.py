"""The verdict of a report: computed by rule from what was tested, so that nobody can word it better than it is."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from steerfn.evaluate import Pair
from steerfn.metrics._metric import Metric
from steerfn.reporting._costs import Costs
from steerfn.reporting._words import counted, listed

Level = Literal["shown", "text only", "like random", "not shown"]

DESCRIBING = frozenset(
    "bleu chrf distinct_n kl_from_baseline length log_prob_difference perplexity repetition rouge "
    "semantic_similarity".split()
)
"""Metrics that say how a text differs or how well it is written, and not whether it does what was wanted."""

FIT = "This says nothing on whether the vector is safe, or fit for a purpose: that is for whoever signs."


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What may be claimed.

    Attributes:
        level: "shown": a metric of behaviour differs from the unsteered model and, the same way, from random vectors
            of the same length; "text only": only metrics of the text as such do; "like random": whatever differs from
            the unsteered model could not be told from a random vector; "not shown": nothing differs.
        headline: a sentence.
        reasons: what it rests on, a sentence each.
    """

    level: Level
    headline: str
    reasons: tuple[str, ...]


def describes(metric: str) -> bool:
    """Whether a metric, whatever its options, describes the text rather than a behaviour."""
    return metric.partition("(")[0] in DESCRIBING


def verdict(pairs: Sequence[Pair], metrics: Mapping[str, Metric], costs: Costs) -> Verdict:
    """What the comparisons carry.

    Args:
        pairs: one vector against the unsteered model and against random vectors, corrected together.
        metrics: the metrics by name.
        costs: what steering costs beside.
    """
    plain = {pair.metric: pair for pair in pairs if pair.against == "unsteered"}
    random = {pair.metric: pair for pair in pairs if pair.against == "random"}
    changed = [name for name, pair in plain.items() if pair.significant]
    # A metric that compares with the unsteered text has no unsteered value, and only the random vector to be against.
    alone = [name for name, pair in random.items() if name not in plain and pair.significant]
    beyond = [name for name in changed if name in random and _same_way(plain[name], random[name])] + alone
    behaviour = [name for name in beyond if not describes(name)]
    asked = [name for name in metrics if not describes(name)]
    tested = {**random, **plain}
    if behaviour:
        said = listed([_moved(tested[name], metrics[name]) for name in behaviour])
        level, headline = "shown", f"An effect was shown: the vector {said}{_at(costs)}."
    elif beyond:
        level = "text only"
        missing = (
            f"no effect on {listed(asked)} could be shown" if asked else "whether the behaviour does was not measured"
        )
        headline = f"The texts change, but {missing}{_at(costs)}."
    elif changed:
        level = "like random"
        headline = f"No effect beyond that of a random vector of the same length could be shown{_but(costs)}."
    else:
        level, headline = "not shown", f"No effect could be shown{_but(costs)}."
    n = max((pair.n for pair in pairs), default=0)
    reasons = [_rested(n, pairs, tested)]
    if not asked:
        reasons.append(
            "Every metric here describes the text itself; to judge a behaviour, name a metric of it "
            "(metrics=['sentiment'], --metric sentiment, or a function of your own)."
        )
    for name in beyond:
        if _worse(tested[name], metrics[name]):
            reasons.append(f"For {name}, {metrics[name].better} is better: this is a change for the worse.")
    like = [name for name in changed if name not in beyond]
    if like and level != "not shown":
        reasons.append(f"The change of {listed(like)} could not be told from that which a random vector makes.")
    if costs.measured:
        reasons.append(f"Cost: {listed(costs.measured)}.")
    if costs.possible:
        reasons.append(f"Not excluded: {listed(costs.possible)}.")
    return Verdict(level, headline, (*reasons, FIT))


def _same_way(plain: Pair, random: Pair) -> bool:
    means = plain.difference.estimate.mean, random.difference.estimate.mean
    return random.significant and means[0] * means[1] > 0


def _moved(pair: Pair, metric: Metric) -> str:
    verb = "raises" if pair.difference.estimate.mean > 0 else "lowers"
    over = "" if pair.against == "unsteered" else " beyond what a random vector does"
    return f"{verb} {metric.name}{over}"


def _worse(pair: Pair, metric: Metric) -> bool:
    rises = pair.difference.estimate.mean > 0
    return metric.better is not None and rises != (metric.better == "higher")


def _at(costs: Costs) -> str:
    return ", at a cost" if costs.measured else ", at a cost that cannot be excluded" if costs.possible else ""


def _but(costs: Costs) -> str:
    return ", but a cost was" if costs.measured else ""


def _rested(n: int, pairs: Sequence[Pair], tested: Mapping[str, Pair]) -> str:
    if not pairs or n < 2:
        return "No metric has a number under two conditions, so nothing was tested."
    level = 100 * pairs[0].difference.estimate.level
    text = (
        f"Tested on {n} prompts with {counted(len(tested), 'metric')}: an effect counts as shown if it differs from "
        f"the unsteered model and, the same way, from random vectors of the same length by more than they differ among "
        f"themselves, with {level:g} % intervals that exclude 0 and the larger of the two p-values below "
        f"{(100 - level) / 100:.2g} after Holm's correction for {counted(len(tested), 'metric')}."
    )
    if few := [pair.metric for pair in pairs if pair.few_draws and not pair.sparse]:
        text += (
            f" For {listed(few)} fewer than five random vectors have numbers, which do not show what others do: "
            "nothing can be shown there; run controls=5 or more."
        )
    if sparse := list(dict.fromkeys(pair.metric for pair in pairs if pair.sparse)):
        text += f" For {listed(sparse)} too few texts have a number for anything to be shown."
    weak = [pair for pair in pairs if not pair.carried and not pair.few_draws and not pair.sparse]
    if weak and len(weak) == sum(not pair.few_draws and not pair.sparse for pair in pairs):
        needed = max(pair.needed for pair in weak)
        text += f" So few prompts or resamples cannot show anything; use at least {needed} prompts."
    return text
