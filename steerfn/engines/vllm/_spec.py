"""What a request asks for: from the `steerfn` entry of its `extra_args` to the operators of each region of its tokens.

A request has three regions: its prompt without the last token, the last token of the prompt, and what is generated. The
scope `prompt` covers the first two, `generated` the last two, `everywhere` all, as in `sf.generate`.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from steerfn._errors import SteerError
from steerfn._io_document import Refused, brief, parse_json
from steerfn.engines.vllm._shelf import Shelf
from steerfn.serving._limits import Limits
from steerfn.serving._schemas import Steering

NAME = "steerfn"
"""The entry of `extra_args`, and of `vllm_xargs`."""
MOST = Limits().max_steering
"""Vectors of one request."""
LONGEST = 100_000
"""Characters of a JSON text: more than so many vectors with all their layers have."""
REGIONS = ("prompt", "last", "generated")
COVERED = {"everywhere": REGIONS, "prompt": REGIONS[:2], "generated": REGIONS[1:]}
EXAMPLE = '{"vector": "happy", "alpha": 2.0, "scope": "generated"}'


_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
UNCHECKED = (
    "A request reached the engine with a steering that was not checked when it came in; add requests as prompts with "
    "SamplingParams, not as an EngineCoreRequest of your own."
)


@with_config(_STRICT)
class Part(TypedDict):
    """One vector of a request, as it is sent to the workers: what it does, and at which blocks' outputs."""

    sha256: str
    operation: Literal["add", "ablate"]
    alpha: float
    blocks: list[int]


@with_config(_STRICT)
class Region(TypedDict):
    """What acts on the tokens of a region, in order, and a hash of it: empty where nothing does."""

    key: str
    parts: Annotated[list[Part], Field(max_length=MOST)]


@with_config(_STRICT)
class _Regions(TypedDict):
    prompt: Region
    last: Region
    generated: Region


_REGIONS = TypeAdapter(_Regions)


def parse(value: Any) -> list[Steering]:
    """The steerings that a request asks for, in order.

    Args:
        value: a mapping, a vector's name, either of them as JSON text, or a list of these. Lists do not nest.

    Raises:
        SteerError: anything else, fields that are unknown or wrong, or too many vectors.

    Example:
        >>> from steerfn.engines.vllm._spec import parse
        >>> [each.vector for each in parse('[{"vector": "happy", "alpha": 2}, {"vector": "calm"}]')]
        ['happy', 'calm']
    """
    value = _from_text(value)
    asked = [_from_text(each) for each in value] if isinstance(value, list) else [value]
    if not 1 <= len(asked) <= MOST:
        raise SteerError(f"A request may have 1 to {MOST} vectors, not {len(asked)}.")
    return [_one({"vector": each} if isinstance(each, str) else each) for each in asked]


def _from_text(value: Any) -> Any:
    """What a JSON text holds, once: a text in it that is JSON again is not read."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    if len(value) > LONGEST:
        raise SteerError(f"steerfn is a text of {len(value)} characters, more than {LONGEST}; name fewer layers.")
    try:
        return parse_json(value.encode("utf-8", "surrogatepass"))
    except Refused as refused:
        raise SteerError(
            f"steerfn is no JSON text ({refused.what}): {brief(value)}; write it as '{EXAMPLE}'."
        ) from None


def _one(value: Any) -> Steering:
    if not isinstance(value, dict):
        raise SteerError(f"steerfn is a mapping such as {EXAMPLE}, or a list of them, not {brief(value)}.")
    try:
        return Steering.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = brief(".".join(str(part) for part in first["loc"])) or "steerfn"
        given = repr(brief(first["input"])) if isinstance(first["input"], str) else brief(first["input"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SteerError(
            f"steerfn.{where} is wrong: {first['msg']}, not {given}{more}; "
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


def place(sha256: str, block: int) -> str:
    """The name of a vector's direction at a block's output."""
    return f"{sha256} at block {block}"


def resolved_of(params: Any) -> dict[str, Region] | None:
    """The resolved steering that a request carries inside the engine, or None.

    Raises:
        SteerError: a steering that was not resolved when the request came in.
    """
    value = (getattr(params, "extra_args", None) or {}).get(NAME)
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != set(REGIONS):
        raise SteerError(UNCHECKED)
    return value


def validate_resolved(regions: Any) -> None:
    """Check a resolved steering to its last number before a step computes with it: a step that fails ends the engine.

    Raises:
        SteerError: anything that `resolve` does not make.
    """
    try:
        _REGIONS.validate_python(regions)
    except ValidationError:
        raise SteerError(UNCHECKED) from None
    if any(region["key"] != key(region["parts"]) for region in regions.values()):
        raise SteerError(UNCHECKED)
