"""Numbers as people have them: numpy's beside Python's."""

from typing import Any

import numpy as np


def plain_number(value: Any) -> Any:
    """A number of numpy's as Python's, an array of them as a list; anything else as it is."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
