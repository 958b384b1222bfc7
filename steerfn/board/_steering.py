"""From the entries of a state to the operator that a model runs with."""

import json
from collections.abc import Callable, Sequence

from steerfn.board._state import Push, State
from steerfn.operators import Operator, add, at, chain, everywhere, generated, last_prompt_token, prompt
from steerfn.values import DataError, SteeringVector

SCOPES = {"everywhere": everywhere, "generated": generated, "prompt": prompt, "last_prompt_token": last_prompt_token}


def part_of(push: Push, vector: SteeringVector) -> SteeringVector:
    """The part of a vector that an entry adds."""
    return vector if push.site is None else vector.select(push.site)


def operator_of(steering: Sequence[Push], get: Callable[[str], SteeringVector]) -> Operator:
    """All entries together: their sum where they meet; without entries the identity.

    Args:
        steering: the entries.
        get: a vector by its name.
    """
    adds = [add(part_of(push, get(push.vector)), push.alpha) for push in steering]
    ops = [
        op if push.scope == "everywhere" else at(SCOPES[push.scope], op)
        for op, push in zip(adds, steering, strict=True)
    ]
    return ops[0] if len(ops) == 1 else chain(*ops)


def read_steering(text: str) -> tuple[Push, ...]:
    """The entries that a JSON list says.

    Raises:
        DataError: no such list.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise DataError(
            'steering must be a JSON list such as [{"vector": "happy.safetensors", "alpha": 2, "scope": "generated"}], '
            f"got {text!r:.120}."
        )
    return State.from_dict({"steering": entries}).steering
