"""The prompts on which configurations may be compared: those that have a number under all of them.

A mean over whatever prompts have a number compares survivors: a strength that ruins ten of twelve texts would win by
the other two.
"""

import numpy as np

ENOUGH = 0.8
"""The share of prompts that must have a number for anything to be said of them together."""


def common(values: np.ndarray, enough: float = ENOUGH) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have numbers for enough prompts, and on which prompts all of those rows have one.

    Args:
        values: one number for each configuration and prompt, `[configs, prompts]`; what is not finite is no number.
        enough: the share of the prompts that a row must have numbers for.

    Returns:
        Masks `[configs]` and `[prompts]`.

    Example:
        >>> import numpy as np
        >>> rows, prompts = common(np.array([[1.0, 2.0, np.nan], [np.nan, np.nan, 9.0], [0.0, 1.0, 2.0]]), enough=0.5)
        >>> rows.tolist(), prompts.tolist()
        ([True, False, True], [True, True, False])
    """
    known = np.isfinite(values)
    rows = known.mean(-1) >= enough if values.shape[-1] else np.zeros(len(values), bool)
    return np.asarray(rows), np.asarray(known[rows].all(0) & rows.any())


def mean_of_known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The mean over the first axis of what is known; NaN where nothing is, without numpy's warning."""
    sums, counts = np.where(known, values, 0).sum(0), known.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
