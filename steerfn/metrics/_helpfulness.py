"""Whether a text answers its prompt."""

from collections.abc import Sequence

from steerfn.metrics._classifier import probabilities
from steerfn.metrics._metric import check_paired, metric
from steerfn.run import Text, is_token_ids
from steerfn.values import DataError


@metric(
    better="higher",
    unit="probability",
    about="Whether a text answers its prompt rather than refuses, repeats it or speaks of something else, by a small "
    "scorer: right and wrong answers are alike to it.",
)
def helpfulness(texts: Sequence[str], *, prompts: Sequence[Text]) -> list[float]:
    """The probability that a text answers its prompt, by a logistic regression on the MiniLM embeddings of both.

    Fitted to instructions with their own answers, against others' answers, refusals, repetitions of the prompt and
    loops of a few words; the model card `steerfn/metrics/data/helpfulness.md` says on which, and how it did on
    prompts that it had not seen. It measures whether a text is an answer to *this* prompt. It does not know whether
    the answer is right, complete, safe or well written, and a refusal of a harmful request counts as unhelpful. It
    was fitted to as many answers as others: read differences between texts of the same prompts, not levels.

    Args:
        texts: what is judged; only the first 256 tokens of each.
        prompts: what each text was generated from; of a conversation the user's last message counts.

    Returns:
        One probability for each text; 0 for a blank one.

    Raises:
        DataError: not one prompt for each text.
        SteerError: the MiniLM package is not installed (extra `minilm`).

    Example:
        >>> import steerfn as sf
        >>> answer, refusal = sf.metrics.helpfulness(
        ...     ["Boil the pasta in salted water for nine minutes.", "I'm sorry, but I can't help with that."],
        ...     prompts=["How do I cook pasta?"] * 2,
        ... )
        >>> answer > 0.5 > refusal
        True
    """
    check_paired(texts, prompts=prompts)
    return probabilities("helpfulness", texts, [instruction_of(prompt) for prompt in prompts], blank=0.0)


def instruction_of(prompt: Text) -> str:
    """A prompt in words: a text itself, of a conversation the last message of the user."""
    if isinstance(prompt, str):
        return prompt
    if is_token_ids(prompt):
        raise DataError("This metric reads prompts as text, but they are token ids; pass them as texts.")
    users = [message["content"] for message in prompt if message["role"] == "user"]
    return users[-1] if users else prompt[-1]["content"]
