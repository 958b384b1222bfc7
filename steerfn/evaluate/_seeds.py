"""Seeds of generation: which decoding uses them, and which random numbers a prompt gets under one."""

from collections.abc import Sequence
from typing import Any

from steerfn._errors import DataError
from steerfn._numbers import plain_number

STRIDE = 1_000_003
"""From one seed to the next: more than anyone has prompts, so that no two texts share random numbers. Not a power of
two: torch looks at the lower 32 bits only."""
MOST = 2**31


def checked_seeds(seeds: Any, model: Any, hf: dict[str, Any]) -> tuple[int, ...]:
    """The seeds, each of which gives every prompt one text.

    Raises:
        DataError: none, one twice, something that is no int, several without sampling (their texts would be
            copies), or another way to ask for several texts.
    """
    seeds = plain_number(seeds)
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, (int, Sequence)):
        raise DataError(f"seeds are ints, one for each text of a prompt, such as (0, 1, 2), not {seeds!r:.80}.")
    found = (seeds,) if isinstance(seeds, int) else tuple(map(plain_number, seeds))
    if not found or any(isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < MOST for seed in found):
        raise DataError(f"seeds are ints from 0 to 2**31 - 1, at least one, such as (0, 1, 2), not {seeds!r:.80}.")
    if len(set(found)) < len(found):
        raise DataError(f"seeds names a seed twice: {list(found)}; the same seed gives the same texts.")
    if len(found) > 1 and not samples(model, hf):
        raise DataError(
            f"Decoding does not sample, so the texts of {len(found)} seeds would be copies; pass do_sample=True, or "
            "one seed."
        )
    if (hf.get("num_return_sequences") or 1) != 1:
        raise DataError(
            f"num_return_sequences is {hf['num_return_sequences']}; pass several seeds instead, such as "
            "seeds=(0, 1, 2): each gives every prompt one text."
        )
    return found


def samples(model: Any, hf: dict[str, Any]) -> bool:
    """Whether these options sample from the model, by its generation config or one that is given."""
    config = hf.get("generation_config") or getattr(model, "generation_config", None)
    chosen = hf.get("do_sample")
    return bool(getattr(config, "do_sample", False) if chosen is None else chosen)


def seed_of_rows(seed: int, model: Any, hf: dict[str, Any]) -> int | None:
    """What `generated` takes as the seed: prompt `p` is sampled with `seed * 1000003 + p`; greedy decoding has none."""
    return seed * STRIDE if samples(model, hf) else None
