"""Contrastive Activation Addition: questions with two answers, read at the answer's letter."""

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Unpack

from steerfn.discover._engine import DiscoveryOptions, discover
from steerfn.discover._mean_difference import MeanDifference
from steerfn.model import Model, Tokenizer
from steerfn.run import Chat, Text
from steerfn.values import DataError, Sites, SteeringVector, public, struct

QUESTION, MATCHING, NOT_MATCHING = KEYS = (
    "question",
    "answer_matching_behavior",
    "answer_not_matching_behavior",
)


@struct
class ContrastiveAddition(MeanDifference):
    """See `caa`. The mean of the differences of pairs is the difference of the means."""

    name: ClassVar[str] = "caa"
    paired: ClassVar[bool] = True


@public
def caa(
    model: Model, tokenizer: Tokenizer, items: Any, sites: Sites, **options: Unpack[DiscoveryOptions]
) -> SteeringVector:
    """Contrastive Activation Addition: `v = mean_i(h(q_i, a_i) - h(q_i, b_i))` at the answer token.

    Item `i` has a question `q`, an answer `a` that matches the behaviour, and one, `b`, that does not. In chat form the
    question is the user's message and the answer the assistant's; else the text is
    `question.rstrip() + " " + answer.strip()`. `h` is the hidden state at the first token in which the two texts
    differ: the letter of "(A)" and "(B)". The question is computed once for both.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        items: dicts with `question`, `answer_matching_behavior` and `answer_not_matching_behavior` (other keys are
            left alone), or a contrast set that has such `items`.
        sites: one or several; an int means `resid_post`.
        options: what every method takes, see `DiscoveryOptions`; here `position="answer"` and `chat=None` (the
            template where the tokenizer has one) are the defaults.

    Returns:
        A vector in float32, in units of the residual stream; its metadata counts the tokens that were read, by
        their text.

    Raises:
        DataError: no items, one without its keys or with equal answers, or an answer that begins like the other and
            ends there.
        SiteError: a site that the model lacks.

    Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition".

    Example:
        >>> import steerfn as sf
        >>> item = {"question": "Shall we stop?\\n (A) Yes\\n (B) No", "answer_matching_behavior": "(A)"}
        >>> item["answer_not_matching_behavior"] = "(B)"
        >>> v = sf.caa(model, tokenizer, [item], 14)
        >>> v.metadata["tokens_read"]
        {'A': 1, 'B': 1}
    """
    chat = options.get("chat")
    if chat is None:
        chat = bool(getattr(tokenizer, "chat_template", None))
    questions = _items(items)
    positive, negative = (
        [_text(item[QUESTION], item[answer], chat) for item in questions] for answer in (MATCHING, NOT_MATCHING)
    )
    chosen: DiscoveryOptions = {"position": "answer", **options, "chat": chat}
    return discover(ContrastiveAddition(), model, tokenizer, positive, negative, sites, **chosen)


def _text(question: str, answer: str, chat: Chat) -> Text:
    if chat:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}]
    return f"{question.rstrip()} {answer.strip()}"


def _items(items: Any) -> list[Mapping[str, Any]]:
    """The items of a list or of a contrast set, each with a question and two answers that differ."""
    inner = getattr(items, "items", None)
    if isinstance(inner, (list, tuple)):
        if not inner:
            raise DataError(
                "This contrast set has no questions with answers (its items are empty); use "
                "sf.mean_difference(model, tokenizer, positive=d.positive, negative=d.negative, sites=...)."
            )
        items = inner
    if isinstance(items, (str, Mapping)) or not hasattr(items, "__iter__"):
        raise DataError(f"items must be a list of dicts with {', '.join(KEYS)}, not {items!r:.80}.")
    listed = list(items)
    if not listed:
        raise DataError(f"items is empty; pass at least one dict with {', '.join(KEYS)}.")
    for i, item in enumerate(listed):
        missing = [key for key in KEYS if not isinstance(item, Mapping) or not isinstance(item.get(key), str)]
        empty = missing or [key for key in KEYS if not item[key].strip()]
        if empty:
            raise DataError(f"items[{i}] has no text for {', '.join(empty)}; pass dicts with {', '.join(KEYS)}.")
        if item[MATCHING].strip() == item[NOT_MATCHING].strip():
            raise DataError(
                f"items[{i}] has the same answer twice, {item[MATCHING]!r:.80}, so its difference is zero; give it an "
                "answer that matches the behaviour and one that does not, or remove it."
            )
    return listed
