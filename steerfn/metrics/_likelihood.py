"""How likely a model finds texts after their prompts: perplexity, and what steering does to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerfn.metrics._metric import check_paired, metric
from steerfn.model import Model, Tokenizer
from steerfn.operators import Operator, identity, rows
from steerfn.run import (
    TOKENS,
    Budget,
    Chat,
    Item,
    Predictor,
    Scorer,
    Text,
    as_texts,
    checked_chat,
    whole_texts,
)
from steerfn.verbs import warn_of_empty

Answer = tuple[tuple[int, ...], tuple[int, ...]]
"""The token ids of a prompt and of the text after it."""
TOGETHER = 256
"""Tokens of texts that share a row with their prompt: their logits over the whole vocabulary are there at once."""


def log_probs(
    model: Any,
    answers: Sequence[Answer | None],
    ops: Sequence[Operator | None],
    chosen: Sequence[int] | None = None,
) -> Float[np.ndarray, "ops answers"]:
    """The log-probability of each text after its prompt, the sum over its tokens, in nats.

    A prompt runs once for several of its texts, and a text that occurs twice is scored once.

    It is NaN where `answers_of` gives no text, or where the text is not among the `chosen` (None: all are).

    Raises:
        SteerError: an operator that does not fit the model.
    """
    log_probs_of = np.full((len(ops), len(answers)), np.nan)
    known = [(i, each) for i in (range(len(answers)) if chosen is None else chosen) if (each := answers[i]) is not None]
    if not known:
        return log_probs_of
    groups = sharing([each for _, each in known], TOGETHER)
    scorer = Scorer(model, [item for item, _ in groups], ops)
    for part in scorer.run():
        for g, values in zip(part.items, part.log_probs, strict=True):
            for column, whose in zip(values.T, groups[g][1], strict=True):
                for i in whose:
                    log_probs_of[:, known[i][0]] = column
    warn_of_empty(scorer.selections)
    return log_probs_of


def answers_of(tokenizer: Any, texts: Sequence[str], prompts: Sequence[Text], chat: Chat) -> list[Answer | None]:
    """The token ids of each prompt and of its text, tokenized as one; None where a text has no tokens of its own.

    That is so for an empty text, and for one whose first letters make up a token with all of its prompt.

    Raises:
        DataError: another number of prompts than texts, or prompts that cannot be encoded.
    """
    check_paired(texts, prompts=prompts)
    checked_chat(chat)
    if not texts:
        return []
    # A prompt that is wrong raises; a text is what a model wrote, and counts as it is.
    prompts = as_texts(prompts, "prompts")
    whole = whole_texts(tokenizer, prompts, [text if _is_written(text) else "" for text in texts], chat)
    return [(tuple(ids[:start]), tuple(ids[start:])) if 0 < start < len(ids) else None for ids, start in whole]


def _is_written(text: Any) -> bool:
    """Whether a tokenizer can take a text: half of a surrogate pair stands for no character."""
    try:
        return isinstance(text, str) and bool(text.encode())
    except UnicodeEncodeError:
        return False


def sharing(answers: Sequence[Answer], together: int) -> list[tuple[Item, list[list[int]]]]:
    """Items in which texts of one prompt are scored together, and which answers each of their texts stands for.

    Args:
        answers: prompts and texts.
        together: tokens that the texts of an item have together at most. Or as many as the prompt has: each text sees
            none but its own, yet attention is computed to all.
    """
    by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for i, (prompt, text) in enumerate(answers):
        by_prompt.setdefault(prompt, {}).setdefault(text, []).append(i)
    groups = []
    for prompt, whose in by_prompt.items():
        some: list[tuple[int, ...]] = []
        for text in whose:
            if some and sum(map(len, some)) + len(text) > max(together, len(prompt)):
                groups.append((Item(prompt, tuple(some)), [whose[each] for each in some]))
                some = []
            some.append(text)
        groups.append((Item(prompt, tuple(some)), [whose[each] for each in some]))
    return groups


@metric(
    better="lower",
    unit="perplexity",
    about="How unexpected a text is to the unsteered model after its prompt: high for broken language, and for "
    "anything else that the model would not say. Loops are low, so read it beside repetition.",
)
def perplexity(
    texts: Sequence[str], *, prompts: Sequence[Text], model: Model, tokenizer: Tokenizer, chat: Chat
) -> list[float]:
    """`exp(-1/T sum_t log p(x_t | prompt, x_<t))` of each text's `T` tokens under the unsteered model.

    1 for a text that the model was sure of; the size of the vocabulary for one drawn blindly. As in Turner et al. 2023,
    "Activation Addition", but of the text that was generated, given its prompt. Prompt and text are tokenized together;
    the end of text does not count. What steering is meant to change is unexpected to the unsteered model too: a rise
    alone is no damage.

    Args:
        texts: what is measured.
        prompts: what each text was generated from.
        model: the model. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        chat: as in `generate`.

    Returns:
        One perplexity for each text; NaN where it has no tokens of its own.

    Raises:
        DataError: not one prompt for each text, or prompts that cannot be encoded.

    Example:
        >>> import steerfn as sf
        >>> given = {"model": model, "tokenizer": tokenizer, "chat": False}
        >>> fluent, broken = sf.metrics.perplexity([" great fun.", " fun great."], prompts=["It was"] * 2, **given)
        >>> fluent < broken
        True
    """
    answers = answers_of(tokenizer, texts, prompts, chat)
    tokens = np.array([np.nan if each is None else len(each[1]) for each in answers])
    with np.errstate(over="ignore"):  # inf says it
        return np.exp(-log_probs(model, answers, [None])[0] / tokens).tolist()


@metric(
    unit="nats",
    about="log p(text) steered minus unsteered: how far steering made the text likelier. It grows with the text's "
    "length, and says nothing of what the text is.",
)
def log_prob_difference(
    texts: Sequence[str],
    *,
    prompts: Sequence[Text],
    ops: Sequence[Operator | None],
    model: Model,
    tokenizer: Tokenizer,
    chat: Chat,
) -> list[float]:
    """`log p_op(text | prompt) - log p(text | prompt)` of each text, summed over its tokens, in nats.

    The log-likelihood ratio of the steered against the unsteered model. Over texts drawn from the steered model its
    mean is `KL(steered || unsteered)` of whole texts, which is positive; greedy texts are not drawn. Prompt and text
    are tokenized together; the end of text does not count.

    Args:
        texts: what is measured.
        prompts: what each text was generated from; for scopes it is what comes before the text.
        ops: the operator of each text, None for the unsteered model.
        model: the model. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        chat: as in `generate`.

    Returns:
        One number for each text: 0 where it is unsteered; NaN where it has no tokens of its own.

    Raises:
        DataError: counts that do not match, or prompts that cannot be encoded.
        SteerError: an operator that does not fit the model.

    Example:
        >>> import steerfn as sf
        >>> given = {"model": model, "tokenizer": tokenizer, "chat": False}
        >>> texts, ops = [" great", " awful"], [sf.add(v, 2.0)] * 2
        >>> great, awful = sf.metrics.log_prob_difference(texts, prompts=["I feel"] * 2, ops=ops, **given)
        >>> great > awful
        True
    """
    check_paired(texts, ops=ops)
    answers = answers_of(tokenizer, texts, prompts, chat)
    values = np.array([np.nan if each is None else 0.0 for each in answers])
    # The texts of one operator at a time: no text is of interest under another's.
    for op in {id(op): op for op in ops if op is not None}.values():
        mine = [i for i, each in enumerate(ops) if each is op]
        plain, steered = log_probs(model, answers, [None, op], mine)
        values[mine] = (steered - plain)[mine]
    return values.tolist()


@metric(
    unit="nats/token",
    about="Mean KL divergence of the steered from the unsteered model's next token along the text: how strongly "
    "steering acts, not whether as it should.",
)
def kl_from_baseline(
    texts: Sequence[str],
    *,
    prompts: Sequence[Text],
    ops: Sequence[Operator | None],
    model: Model,
    tokenizer: Tokenizer,
    chat: Chat,
) -> list[float]:
    """`1/T sum_t KL(p_op(. | prompt, x_<t) || p(. | prompt, x_<t))` over each text's `T` tokens, in nats.

    What is compared is what the steered and the unsteered model would say next at each place of the same text, over the
    whole vocabulary. 0 where nothing acts. Arditi et al. 2024 bound the reverse divergence of the first token by 0.1.

    Args:
        texts: what is measured.
        prompts: what each text was generated from; for scopes it is what comes before the text.
        ops: the operator of each text, None for the unsteered model.
        model: the model. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        chat: as in `generate`.

    Returns:
        One divergence for each text: 0 where it is unsteered; NaN where it has no tokens of its own.

    Raises:
        DataError: counts that do not match, or prompts that cannot be encoded.
        SteerError: an operator that does not fit the model.

    Example:
        >>> import steerfn as sf
        >>> given = {"model": model, "tokenizer": tokenizer, "chat": False}
        >>> ops = [None, sf.add(v, 2.0)]
        >>> unsteered, steered = sf.metrics.kl_from_baseline([" fine"] * 2, prompts=["I feel"] * 2, ops=ops, **given)
        >>> unsteered, steered > 0
        (0.0, True)
    """
    check_paired(texts, ops=ops)
    answers = answers_of(tokenizer, texts, prompts, chat)
    values = np.array([np.nan if each is None else 0.0 for each in answers])
    known = [(i, each, op) for i, (each, op) in enumerate(zip(answers, ops, strict=True)) if each is not None]

    def length(one: Any) -> int:
        return sum(map(len, one[1]))

    # Neighbours are of about one length, so that little of a batch is padding.
    todo = sorted((each for each in known if each[2] is not None), key=length, reverse=True)
    if not todo:
        return values.tolist()
    predict = Predictor.of(model, tokenizer)

    def step(some: Sequence[Any]) -> list[float]:
        return _divergences(predict, [each for _, each, _ in some], [op for *_, op in some])

    for some, divergences in Budget.of("auto", predict.device, TOKENS).run(todo, step, length):
        values[[i for i, _, _ in some]] = divergences
    return values.tolist()


def _divergences(predict: Predictor, answers: Sequence[Answer], ops: Sequence[Operator | None]) -> list[float]:
    """The mean divergence along each text of a batch."""
    prompts, both = [len(prompt) for prompt, _ in answers], [[*prompt, *text] for prompt, text in answers]
    first = min(prompts) - 1
    places = torch.arange(first, max(map(len, both)) - 1)
    with torch.no_grad():
        plain = predict(identity, both, places, prompts)
        steered = predict(rows(ops), both, places, prompts)
        spans = [slice(prompt - 1 - first, len(ids) - 1 - first) for prompt, ids in zip(prompts, both, strict=True)]
        return [
            float(divergence(new[span], old[span]).double().mean())
            for new, old, span in zip(steered, plain, spans, strict=True)
        ]


def divergence(new: Tensor, old: Tensor) -> Tensor:
    """`KL(new || old)` of the distributions that logits stand for, along the last axis."""
    now, before = new.log_softmax(-1), old.log_softmax(-1)
    p = now.exp()
    # A token that the model rules out adds nothing, where 0 * (-inf + inf) would be NaN; rounding may go below 0.
    return torch.where(p == 0, 0.0, p * (now - before)).sum(-1).clamp_min(0)
