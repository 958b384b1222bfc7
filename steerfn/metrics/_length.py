"""How long a text is."""

from collections.abc import Sequence

from steerfn.metrics._metric import metric


@metric(unit="words", about="Words of a text, as white space separates them; bounded by max_new_tokens.")
def length(texts: Sequence[str]) -> list[float]:
    """How many words each text has, words being what white space separates.

    It says whether steering makes a model talk more or fall silent. Texts that were cut off by `max_new_tokens` are as
    long as that allows.

    Args:
        texts: what is measured.

    Returns:
        One count for each text; 0 for a blank one.

    Example:
        >>> import steerfn as sf
        >>> sf.metrics.length(["So be it.", ""])
        [3.0, 0.0]
    """
    return [float(len(text.split())) for text in texts]
