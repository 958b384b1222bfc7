"""What a request asks for: from the `steerfn` entry of its `extra_args` to the operators of each region of its tokens.

A request has three regions: its prompt without the last token, the last token of the prompt, and what is generated. The
scope `prompt` covers the first two, `generated` the last two, `everywhere` all, as in `sf.generate`.
"""

import hashlib
import json
from typing import Any, Literal, TypedDict

from pydantic import ValidationError

from steerfn._errors import SteerError
from steerfn.engines.vllm._shelf import Shelf
from steerfn.serving._limits import Limits
from steerfn.serving._schemas import Steering

NAME = "steerfn"
"""The entry of `extra_args`, and of `vllm_xargs`."""
MOST = Limits().max_steering
"""Vectors of one request."""
REGIONS = ("prompt", "last", "generated")
COVERED = {"everywhere": REGIONS, "prompt": REGIONS[:2], "generated": REGIONS[1:]}
EXAMPLE = '{"vector": "happy", "alpha": 2.0, "scope": "generated"}'


class Part(TypedDict):
    """One vector of a request, as it is sent to the workers: what it does, and at which blocks' outputs."""

    sha256: str
    operation: Literal["add", "ablate"]
    alpha: float
    blocks: list[int]


class Region(TypedDict):
    """What acts on the tokens of a region, in order, and a hash of it: empty where nothing does."""

    key: str
    parts: list[Part]


def parse(value: Any) -> list[Steering]:
    """The steerings that a request asks for, in order.

    Args:
        value: a mapping, a vector's name, either of them as JSON text, or a list of these.

    Raises:
        SteerError: anything else, fields that are unknown or wrong, or too many vectors.

    Example:
        >>> from steerfn.engines.vllm._spec import parse
        >>> [each.vector for each in parse('[{"vector": "happy", "alpha": 2}, {"vector": "calm"}]')]
        ['happy', 'calm']
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise SteerError(f"steerfn is no JSON text ({error}): {value!r:.200}; write it as '{EXAMPLE}'.") from None
    if isinstance(value, list):
        if not 1 <= len(value) <= MOST:
            raise SteerError(f"A request may have 1 to {MOST} vectors, not {len(value)}.")
        return [parsed for each in value for parsed in (parse(each) if not isinstance(each, list) else [_one(each)])]
    return [_one({"vector": value} if isinstance(value, str) else value)]


def _one(value: Any) -> Steering:
    if not isinstance(value, dict):
        raise SteerError(f"steerfn is a mapping such as {EXAMPLE}, or a list of them, not {value!r:.200}.")
    try:
        return Steering.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "steerfn"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SteerError(
            f"steerfn.{where} is wrong: {first['msg']}, not {first['input']!r:.80}{more}; "
            f"write it as {EXAMPLE}, with operation and layers where wanted."
        ) from None


def resolve(asked: list[Steering], shelf: Shelf) -> dict[str, Region]:
    """The operators of each region of a request's tokens.

    Raises:
        SteerError: a vector that is not on the shelf or cannot be served, or layers that it lacks.
    """
    found: dict[str, list[Part]] = {name: [] for name in REGIONS}
    for each in asked:
        blocks = shelf.blocks(each.vector, each.layers)
        if each.operation == "add" and each.alpha == 0:
            continue
        part = Part(
            sha256=shelf.sha256(each.vector),
            operation=each.operation,
            alpha=each.alpha if each.operation == "add" else 1.0,
            blocks=blocks,
        )
        for name in COVERED[each.scope]:
            found[name].append(part)
    return {name: Region(key=key(parts), parts=parts) for name, parts in found.items()}


def key(parts: list[Part]) -> str:
    """A hash of what acts on a token; empty where nothing does.

    Example:
        >>> from steerfn.engines.vllm._spec import key
        >>> key([])
        ''
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest() if parts else ""


def resolved_of(params: Any) -> dict[str, Region] | None:
    """The resolved steering that a request carries inside the engine, or None.

    Raises:
        SteerError: a steering that was not resolved when the request came in.
    """
    value = (getattr(params, "extra_args", None) or {}).get(NAME)
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != set(REGIONS):
        raise SteerError(
            "A request reached the engine with a steering that was not checked when it came in; add requests as "
            "prompts with SamplingParams, not as an EngineCoreRequest of your own."
        )
    return value
