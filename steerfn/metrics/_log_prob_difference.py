"""How much likelier steering makes a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn._chat_template import Chat
from steerfn._text import Text
from steerfn.metrics._answers import answers_of
from steerfn.metrics._likelihood import log_probs
from steerfn.metrics._metric import metric
from steerfn.metrics._paired import check_paired
from steerfn.operators import Operator


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
    model: Any,
    tokenizer: Any,
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
        >>> given = {"model": model, "tokenizer": tokenizer, "chat": None}  # doctest: +SKIP
        >>> sf.metrics.log_prob_difference([" great!"], prompts=["I feel"], ops=[sf.add(v)], **given)  # doctest: +SKIP
    """
    check_paired(texts, ops=ops)
    answers = answers_of(tokenizer, texts, prompts, chat)
    found = np.array([np.nan if each is None else 0.0 for each in answers])
    # The texts of one operator at a time: no text is of interest under another's.
    for op in {id(op): op for op in ops if op is not None}.values():
        mine = [i for i, each in enumerate(ops) if each is op]
        plain, steered = log_probs(model, answers, [None, op], mine)
        found[mine] = (steered - plain)[mine]
    return found.tolist()
