"""The verdict of a report: computed by rule from what was tested, so that nobody can word it better than it is.

And what a report does not show, in plain words: chosen by rule from what was found, so that none is forgotten.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from steerfn.discover import Chance, Quality
from steerfn.evaluate import FEWEST_DRAWS, Pair, VectorComparison
from steerfn.metrics import Metric
from steerfn.output import enumeration, quantity
from steerfn.reporting._measure import Costs, unit_of

Level = Literal["shown", "text only", "like random", "not shown"]

DESCRIBING = frozenset(
    "bleu chrf distinct_n kl_from_baseline length log_prob_difference perplexity repetition rouge "
    "semantic_similarity".split()
)
"""Metrics that say how a text differs or how well it is written, and not whether it does what was wanted."""

FIT = "This says nothing on whether the vector is safe, or fit for a purpose: that is for whoever signs."


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The claim that the measurements support.

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


def verdict(pairs: Sequence[Pair], metrics: Mapping[str, Metric], costs: Costs, unit: str = "prompt") -> Verdict:
    """Judge by rule what the comparisons support.

    Args:
        pairs: one vector against the unsteered model and against random vectors, corrected together.
        costs: what steering costs beside.
        unit: what counts as one observation.
    """
    plain = {pair.metric: pair for pair in pairs if pair.against == "unsteered"}
    random = {pair.metric: pair for pair in pairs if pair.against == "random"}
    changed = [name for name, pair in plain.items() if pair.significant]
    # A metric that compares with the unsteered text has no unsteered value, and only the random vector to be against.
    alone = [name for name, pair in random.items() if name not in plain and pair.significant]
    beyond = [name for name in changed if name in random and _agree(plain[name], random[name])] + alone
    behaviour = [name for name in beyond if not describes(name)]
    of_behaviour = [name for name in metrics if not describes(name)]
    tested = {**random, **plain}
    if behaviour:
        changes = enumeration([_describe_change(tested[name], metrics[name]) for name in behaviour])
        level, headline = "shown", f"An effect was shown: the vector {changes}{_with_cost(costs)}."
    elif beyond:
        level = "text only"
        missing = (
            f"no effect on {enumeration(of_behaviour)} could be shown"
            if of_behaviour
            else "whether the behaviour does was not measured"
        )
        headline = f"The texts change, but {missing}{_with_cost(costs)}."
    elif changed:
        level = "like random"
        headline = f"No effect beyond that of a random vector of the same length could be shown{_but_cost(costs)}."
    else:
        level, headline = "not shown", f"No effect could be shown{_but_cost(costs)}."
    n = max((pair.n for pair in pairs), default=0)
    reasons = [_describe_test(n, pairs, tested, unit)]
    if not of_behaviour:
        reasons.append(
            "Every metric here describes the text itself; to judge a behaviour, name a metric of it "
            "(metrics=['sentiment'], --metric sentiment, or a function of your own)."
        )
    for name in beyond:
        if _is_worse(tested[name], metrics[name]):
            reasons.append(f"For {name}, {metrics[name].better} is better: this is a change for the worse.")
    like = [name for name in changed if name not in beyond]
    if like and level != "not shown":
        reasons.append(f"The change of {enumeration(like)} could not be told from that which a random vector makes.")
    if costs.measured:
        reasons.append(f"Cost: {enumeration(costs.measured)}.")
    if costs.possible:
        reasons.append(f"Not excluded: {enumeration(costs.possible)}.")
    return Verdict(level, headline, (*reasons, FIT))


def _agree(plain: Pair, random: Pair) -> bool:
    means = plain.difference.estimate.mean, random.difference.estimate.mean
    return random.significant and means[0] * means[1] > 0


def _describe_change(pair: Pair, metric: Metric) -> str:
    verb = "raises" if pair.difference.estimate.mean > 0 else "lowers"
    over = "" if pair.against == "unsteered" else " beyond what a random vector does"
    return f"{verb} {metric.name}{over}"


def _is_worse(pair: Pair, metric: Metric) -> bool:
    rises = pair.difference.estimate.mean > 0
    return metric.better is not None and rises != (metric.better == "higher")


def _with_cost(costs: Costs) -> str:
    return ", at a cost" if costs.measured else ", at a cost that cannot be excluded" if costs.possible else ""


def _but_cost(costs: Costs) -> str:
    return ", but a cost was" if costs.measured else ""


def _describe_test(n: int, pairs: Sequence[Pair], tested: Mapping[str, Pair], unit: str) -> str:
    if not pairs or n < 2:
        return "No metric has a number under two conditions, so nothing was tested."
    level = 100 * pairs[0].difference.estimate.level
    text = (
        f"Tested on {quantity(n, unit)} with {quantity(len(tested), 'metric')}: an effect counts as shown if it "
        f"differs from the unsteered model and, the same way, from random vectors of the same length by more than they "
        f"differ among themselves, with {level:g} % intervals that exclude 0 and the larger of the two p-values below "
        f"{(100 - level) / 100:.2g} after Holm's correction for {quantity(len(tested), 'metric')}."
    )
    if few := [pair.metric for pair in pairs if pair.few_draws and not pair.sparse]:
        text += (
            f" For {enumeration(few)} fewer than five random vectors have numbers, which do not show what others do: "
            "nothing can be shown there; run controls=5 or more."
        )
    if sparse := list(dict.fromkeys(pair.metric for pair in pairs if pair.sparse)):
        text += f" For {enumeration(sparse)} too few texts have a number for anything to be shown."
    weak = [pair for pair in pairs if not pair.carried and not pair.few_draws and not pair.sparse]
    if weak and len(weak) == sum(not pair.few_draws and not pair.sparse for pair in pairs):
        needed = max(pair.needed for pair in weak)
        text += f" So few prompts or resamples cannot show anything; use at least {quantity(needed, unit)}."
    return text


BY_CHANCE = 0.05
"""A best layer that chance reaches more often than this is not told from one of noise."""
FEW_PROMPTS = 30
"""With fewer prompts an average says little of others of their kind, whatever its interval."""
SEPARATES = 0.7
"""A direction with a lower held-out AUC hardly tells the data's sides apart."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts that the limits of a report depend on.

    Attributes:
        effect: the comparison with the unsteered model and with random vectors.
        alpha: the strength.
        max_new_tokens: tokens of a text at most.
        sampled: whether texts were sampled, rather than greedy.
        draws: random vectors.
        own_prompts: whether the prompts are the neutral ones of this package.
        overlap: prompts that are also in the data.
        made_from: counts of texts that the vector says it was made from, or None.
        data: counts of the data.
        match: whether the vector is of the model at hand, as in `identified`.
        aucs: of the vector itself on the data, by site.
        best: the quality of the best layer.
        chance: what the best layer reaches by chance, None where that cannot be said.
        lint: what is wrong with the data.
        passages: how many plain texts the costs were measured on.
        own_passages: whether those are the ones of this package.
        questions: whether questions were asked, too.
        unchanged: whether the model gave the same logits before and after.
    """

    effect: VectorComparison
    alpha: float
    max_new_tokens: int
    sampled: bool
    draws: int
    own_prompts: bool
    overlap: Sequence[str]
    made_from: tuple[Any, Any] | None
    data: tuple[int, int]
    match: str
    aucs: Sequence[float]
    best: Quality
    chance: Chance | None
    lint: int
    passages: int
    own_passages: bool
    questions: bool
    unchanged: bool


def limits(facts: Facts) -> list[str]:
    """The limits of a report, a sentence or two each: first those of this one, then those of every report."""
    return [*_of_model(facts), *_of_data(facts), *_of_effect(facts), *_of_texts(facts), *_always(facts)]


def _of_model(facts: Facts) -> Iterator[str]:
    if not facts.unchanged:
        yield (
            "The model did not give the same logits for the same prompt before and after these measurements: either "
            "its device does not compute the same twice, or something changed it. The numbers here may not repeat."
        )
    if facts.match == "other":
        yield "The vector was made from a model of another architecture; what it means here is unknown."
    elif facts.match == "unknown":
        yield "The vector does not say from which model it was made; that it is of this one cannot be checked."
    elif facts.match == "other weights":
        yield (
            "The vector was made from other weights than these, of the same architecture (a base model, a fine-tune, "
            "an adapter, a quantized copy); what it means here is what sections 3 and 4 show, and no more."
        )
    elif facts.match == "architecture":
        yield (
            "That the vector is of a model of this architecture does not show that it is of these weights: a "
            "fine-tune has the same fingerprint. Compare the names and revisions in sections 1 and 2."
        )


def _of_data(facts: Facts) -> Iterator[str]:
    if facts.made_from is None:
        yield "The vector does not say from how many texts it was made, so nobody can tell how well it is founded."
    elif facts.made_from == facts.data:
        yield (
            "The data has as many texts as the vector was made from. If they are the same, the vector's own AUC is "
            "that of texts it has seen, and higher than on others; the AUC by layer is held out in any case."
        )
    if facts.lint:
        yield (
            f"Section 3 has {quantity(facts.lint, 'finding')} on the data: what tells its sides apart may be something "
            "else than the behaviour, or chance."
        )
    best, chance = facts.best, facts.chance
    if best.auc is None:
        yield f"Cross-validation tells nothing here ({best.reason}), so there is no held-out AUC."
    elif chance is None or chance.p > BY_CHANCE:
        reached = "what chance gives is not known" if chance is None else f"chance reaches it with p = {chance.p:.2g}"
        yield (
            f"The best held-out AUC of any layer is {best.auc:.2f}, where 0.5 is chance for one layer; for the best of "
            f"many {reached}: that the data's two sides are told apart in this model is not shown."
        )
    elif best.auc < SEPARATES and (best.pair_accuracy or 0) < SEPARATES:
        yield (
            f"The best held-out AUC of any layer is {best.auc:.2f}, where 0.5 is chance: the data's two sides are "
            "hardly told apart in this model."
        )
    if facts.aucs and min(facts.aucs) < 1 - SEPARATES:
        yield (
            f"At a site of the vector its AUC on the data is {min(facts.aucs):.2f}, below chance: there the vector "
            "points away from the data's positive side. Check the sign, or whether this is its data."
        )
    elif facts.aucs and min(facts.aucs) < SEPARATES:
        yield (
            f"At a site of the vector its AUC on the data is {min(facts.aucs):.2f}, where 0.5 is chance: whatever it "
            "does, it hardly tells these texts apart."
        )
    if facts.overlap:
        yield (
            f"Of the {len(facts.effect.prompts)} prompts {len(facts.overlap)} can also be found in the data (first "
            f"{facts.overlap[0]!r}): the effect on these is not one on new text."
        )
    if facts.own_prompts:
        yield (
            "The prompts are neutral ones that come with steerfn. The effect on the prompts that this vector is meant "
            "for may be another."
        )


def _of_effect(facts: Facts) -> Iterator[str]:
    n, unit = len(set(facts.effect.unit_of)), unit_of(facts.effect)
    if n < FEW_PROMPTS:
        yield f"There are only {quantity(n, unit)}. An average over so few says little of other prompts of their kind."
    plain = [pair for pair in facts.effect.pairs if pair.against == "unsteered" and pair.n >= 2]
    around = [pair.metric for pair in plain if pair.difference.estimate.low <= 0 <= pair.difference.estimate.high]
    if around:
        yield (
            f"The interval of the difference in {enumeration(around)} includes 0. That is no proof that there is none: "
            "a difference as large as the interval allows may be there."
        )
    for name, metric in facts.effect.metrics.items():
        if metric.about:
            yield f"{name} is a number, not the thing itself. What it measures: {metric.about.rstrip('.')}."
        elif not describes(name):
            yield f"{name} is a metric of the user's own, of which nothing more is known here."
    yield (
        f"One strength was tried (alpha {facts.alpha:g}). Others may do more, or harm; and if this one was chosen on "
        "the same prompts, its effect owes something to that choice."
    )
    if facts.draws < FEWEST_DRAWS:
        yield (
            f"Only {quantity(facts.draws, 'random vector')} drawn: fewer than {FEWEST_DRAWS} do not show what others "
            "do, and carry no claim."
        )


def _of_texts(facts: Facts) -> Iterator[str]:
    if not facts.sampled:
        yield "Texts were decoded greedily, one for each prompt. What sampling would give is not known."
    yield f"Texts end after {facts.max_new_tokens} tokens. What longer answers come to is not known."
    own = " that come with steerfn, all in English" if facts.own_passages else ""
    yield (
        f"Side effects were measured on {quantity(facts.passages, 'passage')} of plain text{own}. Other languages, "
        f"code, long contexts, {'' if facts.questions else 'knowledge '}and reasoning may suffer without showing here."
    )


def _always(facts: Facts) -> Iterator[str]:
    del facts
    yield (
        "All of this is about averages. A rare prompt, or one that someone wrote to break the steering, may be "
        "answered in any way."
    )
    yield "It is about this vector on this model at this strength. Quantized, fine-tuned or merged models are others."
    yield "Steering a behaviour is not the same as removing what the model knows or can do."
