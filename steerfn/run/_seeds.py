"""Seeds of generation: which decoding uses them, and which random numbers a prompt gets under one."""

from collections.abc import Sequence
from typing import Any

from steerfn.run._decoding import samples
from steerfn.values import DataError, as_integer, integer, plain_number

STRIDE = 1_000_003
"""From one seed to the next: more than anyone has prompts, so that no two texts share random numbers. Not a power of
two: torch looks at the lower 32 bits only."""
MOST = 2**31
SEEDS = -(2**63), 2**64 - 1
"""What torch takes as a seed."""


def checked_seeds(seeds: Any, hf: dict[str, Any]) -> tuple[int, ...]:
    """The seeds, each of which gives every prompt one text.

    Raises:
        DataError: none, one twice, something that is not an integer, several without sampling (their texts would be
            copies), or another way to ask for several texts.
    """
    values = plain_number(seeds) if as_integer(seeds) is None else [seeds]
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
        raise DataError(
            "`seeds` must be integers, one for each text of a prompt and at least one, such as (0, 1, 2), got "
            f"{seeds!r:.80}."
        )
    checked = tuple(integer(f"seeds[{i}]", seed, 0, MOST - 1) for i, seed in enumerate(values))
    if len(set(checked)) < len(checked):
        raise DataError(f"seeds names a seed twice: {list(checked)}; the same seed gives the same texts.")
    if len(checked) > 1 and not samples(hf):
        raise DataError(
            f"Decoding does not sample, so the texts of {len(checked)} seeds would be copies; pass do_sample=True, or "
            "one seed."
        )
    if (hf.get("num_return_sequences") or 1) != 1:
        raise DataError(
            f"num_return_sequences is {hf['num_return_sequences']}; pass several seeds instead, such as "
            "seeds=(0, 1, 2): each gives every prompt one text."
        )
    return checked


def seed_of_rows(seed: int) -> int:
    """The seed for `generate`, which then samples prompt `p` with `seed * 1000003 + p`."""
    return seed * STRIDE


def row_seeds(seed: Any, prompts: int, hf: dict[str, Any]) -> int | tuple[int, ...] | None:
    """One seed for all prompts, or one for each."""
    seed = plain_number(seed)
    if seed is None or isinstance(seed, str) or not isinstance(seed, Sequence):
        return None if seed is None else integer("seed", seed, *SEEDS)
    if len(seed) != prompts:
        raise DataError(f"There are {prompts} prompts but {len(seed)} seeds; pass one for each, or a single one.")
    if hf.get("custom_generate") is not None:
        raise DataError("seed=[...] does not reach the sampling of custom_generate; pass one int as the seed.")
    return tuple(integer(f"seed[{i}]", each, *SEEDS) for i, each in enumerate(seed))
