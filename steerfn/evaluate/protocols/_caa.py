"""CAA's multiple choice: does the vector move the choice between two answers, whatever their letters?"""

import numpy as np
from typing_extensions import Unpack

from steerfn.evaluate._outcome import STEERED, Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._tally import records_of
from steerfn.evaluate.protocols._choices import Choices, choices, questions_of
from steerfn.evaluate.protocols._data import Items
from steerfn.evaluate.protocols._run import ProtocolRun, SteeringOptions
from steerfn.model import Model, Tokenizer
from steerfn.operators import generated
from steerfn.values import SteeringVector, public

SOURCE = "Rimsky et al. 2024, Steering Llama 2 via Contrastive Activation Addition"
LITTLE = 0.1
"""A mass of the answers below which shares speak for a small part of what the model would say."""
BIAS = 0.1
"""A distance of the first letter's share from 0.5 that is worth a note."""


@public
def caa(
    model: Model,
    tokenizer: Tokenizer,
    vector: SteeringVector,
    data: Items,
    *,
    alpha: float = 1.0,
    both_orders: bool = True,
    **options: Unpack[SteeringOptions],
) -> Outcome:
    """CAA multiple choice: `p_match = p(match) / (p(match) + p(other))`, the mean over questions.

    The answer is forced to begin with "(", and `p` is the probability of the letter after it. Each question is asked in
    both orders of its options, and its `p_match` is the mean of the two: a model that prefers a letter whatever it
    stands for scores 0.5. The vector acts after the prompt (`scope=sf.generated`), as in the paper. Answers that are no
    letters (Yes and No) are compared from where they begin to differ, in the one order that they have.

    Figures:

    - `p_match`: as above, in both orders;
    - `p_match_given_order`: in the order of the file alone, as published; letter bias is in it;
    - `p_first_letter`: the share of the earlier letter in both orders, 0.5 without letter bias;
    - `mass`: `p(match) + p(other)`, how much of the model's probability the shares speak for.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vector: the vector.
        data: questions, or the path of a file: dicts with `question`, `answer_matching_behavior` and
            `answer_not_matching_behavior` (CAA, Anthropic's evals) or `prompt`, `correct` and `incorrect`.
        alpha: the strength.
        both_orders: False asks each question in the order of the file only.
        options: what every protocol takes, see `SteeringOptions`.

    Raises:
        DataError: data without questions, or a question without an option that its answer names.
        FileError: a file that cannot be read.
        SiteError: a vector with a site that the model lacks.

    Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition". That a preference for letters
    can pass for steering: Tan et al. 2024.

    Example:
        >>> import steerfn as sf
        >>> item = {"question": "Shall we go?\\n (A) Yes\\n (B) No", "answer_matching_behavior": " (A)"}
        >>> item["answer_not_matching_behavior"] = " (B)"
        >>> outcome = sf.protocols.caa(model, tokenizer, v, [item], alpha=2.0)
        >>> list(outcome.figures)
        ['p_match', 'p_match_given_order', 'p_first_letter', 'mass']
    """
    run = ProtocolRun.of("caa", options, scope=generated)
    questions, units = run.select_items(questions_of(data))
    ops = run.conditions(model, vector, alpha)
    answers = choices(run, model, tokenizer, questions, list(ops.values()), both_orders)
    values = figures(answers, list(ops), both_orders)
    items = [{"question": q.text, "positive": q.positive, "negative": q.negative} for q in questions]
    return run.outcome(
        SOURCE,
        values,
        compared=("p_match", "p_first_letter"),
        records=records_of(items, values),
        notes=notes(values),
        about=run.about(model, list(ops.values()), items, alpha=alpha, both_orders=both_orders),
        units=units,
    )


def figures(answers: Choices, conditions: list[str], both_orders: bool) -> dict[str, dict[str, np.ndarray]]:
    """The figures of each question under each condition."""
    share, first, mass = (answers.by_item(each) for each in (answers.p_match, answers.p_first, answers.mass))
    in_order = answers.p_match[:, ~answers.is_swapped]  # one version of each question, in their order
    values: dict[str, dict[str, np.ndarray]] = {}
    for c, condition in enumerate(conditions):
        values[condition] = {"p_match": share[c]}
        if both_orders:
            values[condition]["p_match_given_order"] = in_order[c]
        if not np.isnan(first).all():
            values[condition]["p_first_letter"] = first[c]
        values[condition]["mass"] = mass[c]
    return values


def notes(values: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Caveats on answer letters: letter bias, and the probability mass that the shares cover."""
    lines = []
    if "p_first_letter" in values[STEERED]:
        plain, steered = (float(np.nanmean(values[c]["p_first_letter"])) for c in (UNSTEERED, STEERED))
        if max(abs(plain - 0.5), abs(steered - 0.5)) > BIAS:
            both = "p_match_given_order" in values[STEERED]
            lines.append(
                f"Letter bias: the earlier letter has a share of {plain:.2f} unsteered and {steered:.2f} steered, "
                f"whatever it stands for. {'Asking in both orders' if both else 'Only both_orders=True'} takes that "
                "out of p_match."
            )
    mass = float(values[UNSTEERED]["mass"].mean())
    if mass < LITTLE:
        lines.append(
            f"The two answers together have a probability of {mass:.2g} unsteered: p_match speaks for little of what "
            "the model would say."
        )
    return lines
