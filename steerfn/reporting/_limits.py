"""What a report does not show, in plain words: chosen by rule from what was found, so that none is forgotten."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from steerfn.evaluate import VectorComparison
from steerfn.evaluate._against_random import FEWEST_DRAWS
from steerfn.reporting._verdict import describes
from steerfn.reporting._words import counted, listed

FEW_PROMPTS = 30
"""With fewer prompts an average says little of others of their kind, whatever its interval."""
SEPARATES = 0.7
"""A direction with a lower held-out AUC hardly tells the data's sides apart."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the limits depend on.

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
        match: "same", "other" or "unknown", as in `identified`.
        aucs: of the vector itself on the data, by site.
        held_out: the best held-out AUC of the profile, None where there is none.
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
    held_out: float | None
    lint: int
    passages: int
    own_passages: bool
    questions: bool
    unchanged: bool


def limits(facts: Facts) -> list[str]:
    """What is not shown, a sentence or two each: what was found here first, what is always so last."""
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
    else:
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
            f"Section 3 has {counted(facts.lint, 'finding')} on the data: what tells its sides apart may be something "
            "else than the behaviour, or chance."
        )
    if facts.held_out is None:
        yield "There were too few texts to cross-validate, so there is no held-out AUC."
    elif facts.held_out < SEPARATES:
        yield (
            f"The best held-out AUC of any layer is {facts.held_out:.2f}, where 0.5 is chance: the data's two sides "
            "are hardly told apart in this model."
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
    n = len({repr(prompt) for prompt in facts.effect.prompts})
    if n < FEW_PROMPTS:
        yield (
            f"There are only {counted(n, 'prompt')}. An average over so few says little of other prompts of their kind."
        )
    plain = [pair for pair in facts.effect.pairs if pair.against == "unsteered" and pair.n >= 2]
    around = [pair.metric for pair in plain if pair.difference.estimate.low <= 0 <= pair.difference.estimate.high]
    if around:
        yield (
            f"The interval of the difference in {listed(around)} includes 0. That is no proof that there is none: a "
            "difference as large as the interval allows may be there."
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
            f"Only {counted(facts.draws, 'random vector')} drawn: fewer than {FEWEST_DRAWS} do not show what others "
            "do, and carry no claim."
        )


def _of_texts(facts: Facts) -> Iterator[str]:
    if not facts.sampled:
        yield "Texts were decoded greedily, one for each prompt. What sampling would give is not known."
    yield f"Texts end after {facts.max_new_tokens} tokens. What longer answers come to is not known."
    own = " that come with steerfn, all in English" if facts.own_passages else ""
    yield (
        f"Side effects were measured on {counted(facts.passages, 'passage')} of plain text{own}. Other languages, "
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
