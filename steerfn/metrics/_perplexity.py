"""How unexpected a text is to the unsteered model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steerfn._chat_template import Chat
from steerfn._text import Text
from steerfn.metrics._answers import answers_of
from steerfn.metrics._likelihood import log_probs
from steerfn.metrics._metric import metric


@metric(
    better="lower",
    unit="perplexity",
    about="How unexpected a text is to the unsteered model after its prompt: high for broken language, and for "
    "anything else that the model would not say. Loops are low, so read it beside repetition.",
)
def perplexity(texts: Sequence[str], *, prompts: Sequence[Text], model: Any, tokenizer: Any, chat: Chat) -> list[float]:
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
        >>> given = {"model": model, "tokenizer": tokenizer, "chat": None}  # doctest: +SKIP
        >>> sf.metrics.perplexity([" fine, thanks."], prompts=["How are you?"], **given)  # doctest: +SKIP
    """
    answers = answers_of(tokenizer, texts, prompts, chat)
    tokens = np.array([np.nan if each is None else len(each[1]) for each in answers])
    with np.errstate(over="ignore"):  # inf says it
        return np.exp(-log_probs(model, answers, [None])[0] / tokens).tolist()
