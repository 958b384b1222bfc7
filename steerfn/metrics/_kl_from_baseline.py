"""How far steering moves what the model predicts along a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn._chat_template import Chat
from steerfn._text import Text
from steerfn.discover.search._perplexity import TOKENS, TOKENS_ELSEWHERE
from steerfn.discover.search._predict import Predictor
from steerfn.metrics._answers import answers_of
from steerfn.metrics._metric import metric
from steerfn.metrics._paired import check_paired
from steerfn.operators import Operator, identity, rows


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
    model: Any,
    tokenizer: Any,
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
        >>> given = {"model": model, "tokenizer": tokenizer, "chat": None}  # doctest: +SKIP
        >>> sf.metrics.kl_from_baseline([" great!"], prompts=["I feel"], ops=[sf.add(v)], **given)  # doctest: +SKIP
    """
    check_paired(texts, ops=ops)
    answers = answers_of(tokenizer, texts, prompts, chat)
    found = np.array([np.nan if each is None else 0.0 for each in answers])
    known = [(i, each, op) for i, (each, op) in enumerate(zip(answers, ops, strict=True)) if each is not None]
    # Neighbours are of about one length, so that little of a batch is padding.
    todo = sorted((each for each in known if each[2] is not None), key=lambda e: sum(map(len, e[1])))
    if not todo:
        return found.tolist()
    predict = Predictor.of(model, tokenizer)
    budget = TOKENS.get(predict.device.type, TOKENS_ELSEWHERE)
    while todo:
        size = max(1, budget // sum(map(len, todo[-1][1])))
        some = todo[-size:]
        try:
            found[[i for i, _, _ in some]] = _divergences(
                predict, [each for _, each, _ in some], [op for *_, op in some]
            )
        except torch.OutOfMemoryError:
            if len(some) == 1:
                raise
            budget //= 2
            continue
        del todo[-size:]
    return found.tolist()


def _divergences(
    predict: Predictor, answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], ops: Sequence[Operator | None]
) -> list[float]:
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
