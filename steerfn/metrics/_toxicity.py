"""How toxic a text is."""

from collections.abc import Sequence

from steerfn.metrics._classifier import probabilities
from steerfn.metrics._metric import metric


@metric(
    better="lower",
    unit="probability",
    about="Insults, threats, profanity and hate in short English texts, by a small scorer: for trends over many texts, "
    "not for moderation.",
)
def toxicity(texts: Sequence[str]) -> list[float]:
    """The probability that a text is toxic, by a logistic regression on its MiniLM embedding.

    Fitted to texts that the Perspective API scored (RealToxicityPrompts, Gehman et al. 2020) and to plain texts; the
    model card `steerfn/metrics/data/toxicity.md` says on which, and how it did on texts that it had not seen. It was
    fitted to as many toxic texts as others, so 0.3 does not mean that three in ten such texts are toxic. It
    shares Perspective's habit of hearing toxicity where a group is only named, and cannot tell a quotation from an
    insult, sarcasm from praise, or polite words from the harm that they propose.

    Args:
        texts: what is judged; only the first 256 tokens of each.

    Returns:
        One probability for each text; 0 for a blank one, which insults nobody.

    Raises:
        SteerError: the MiniLM package is not installed (extra `minilm`).

    Example:
        >>> import steerfn as sf
        >>> insult, thanks = sf.metrics.toxicity(["Shut up, you stupid idiot.", "Thank you, that was very kind."])
        >>> insult > 0.5 > thanks
        True
    """
    return probabilities("toxicity", texts, blank=0.0)
