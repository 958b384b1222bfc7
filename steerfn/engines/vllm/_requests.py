"""A request's steering: from the `steerfn` entry of its `extra_args` to the operators of each region of its tokens.

A request has three regions: its prompt without the last token, the last token of the prompt, and what is generated. The
scope `prompt` covers the first two, `generated` the last two, `everywhere` all, as in `sf.generate`.

It is checked in the front-end process, when it comes in: what is wrong fails that request alone.

To the key of a block of the prefix cache it adds what touched the block's own tokens. A key contains that of the block
before it, so what touched earlier tokens is in it already. Tokens that nothing touches add nothing: prompts of
requests that steer only what they generate share their blocks with everyone's, all but one that holds the last token of
a prompt.
"""

import logging
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from steerfn.engines.vllm._vectors import FOLDER, EngineShelf, obstacle, shelf_of
from steerfn.serving import Limits, SteeringRequest
from steerfn.values import SteerError, json_sha256
from steerfn.values.files import Refused, brief, parse_json

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
    """The parts that act on the tokens of a region, in order, and a hash of them, which is empty where nothing acts."""

    key: str
    parts: Annotated[list[Part], Field(max_length=MOST)]


@with_config(_STRICT)
class _Regions(TypedDict):
    prompt: Region
    last: Region
    generated: Region


_REGIONS = TypeAdapter(_Regions)


def parse(value: Any, field: str = NAME) -> list[SteeringRequest]:
    """The steerings that a request asks for, in order.

    Args:
        value: a mapping, a vector's name, either of them as JSON text, or a list of these. Lists do not nest.
        field: where the request has it, for messages.

    Raises:
        SteerError: anything else, fields that are unknown or wrong, or too many vectors.

    Example:
        >>> from steerfn.engines.vllm._requests import parse
        >>> [each.vector for each in parse('[{"vector": "happy", "alpha": 2}, {"vector": "calm"}]')]
        ['happy', 'calm']
    """
    value = _from_text(value, field)
    entries = [_from_text(each, field) for each in value] if isinstance(value, list) else [value]
    if not 1 <= len(entries) <= MOST:
        raise SteerError(f"A request may have 1 to {MOST} vectors, not {len(entries)}.")
    return [_one({"vector": each} if isinstance(each, str) else each, field) for each in entries]


def _from_text(value: Any, field: str) -> Any:
    """The value of a JSON text, decoded once: a string inside it that is JSON again stays a string."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    if len(value) > LONGEST:
        raise SteerError(f"{field} is a text of {len(value)} characters, more than {LONGEST}; name fewer layers.")
    try:
        return parse_json(value.encode("utf-8", "surrogatepass"))
    except Refused as refused:
        raise SteerError(f"{field} is not JSON ({refused.what}): {brief(value)}; write it as '{EXAMPLE}'.") from None


def _one(value: Any, field: str) -> SteeringRequest:
    if not isinstance(value, dict):
        raise SteerError(f"{field} is a mapping such as {EXAMPLE}, or a list of them, not {brief(value)}.")
    try:
        return SteeringRequest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = brief(".".join(str(part) for part in first["loc"])) or field
        given = repr(brief(first["input"])) if isinstance(first["input"], str) else brief(first["input"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SteerError(
            f"{field}.{where} is wrong: {first['msg']}, not {given}{more}; "
            f"write it as {EXAMPLE}, with operation and layers where wanted."
        ) from None


def resolve(entries: list[SteeringRequest], shelf: EngineShelf) -> dict[str, Region]:
    """The operators of each region of a request's tokens.

    Raises:
        SteerError: a vector that is not on the shelf or cannot be served, or layers that it lacks.
    """
    parts_by_region: dict[str, list[Part]] = {name: [] for name in REGIONS}
    for each in entries:
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
            parts_by_region[name].append(part)
    return {name: Region(key=key(parts), parts=parts) for name, parts in parts_by_region.items()}


def key(parts: list[Part]) -> str:
    """A hash of what acts on a token; empty where nothing does.

    Example:
        >>> from steerfn.engines.vllm._requests import key
        >>> key([])
        ''
    """
    return json_sha256(parts) if parts else ""


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


log = logging.getLogger("vllm.plugins.steerfn")


def admit(config: Any, params: Any, *, resumable: bool = False) -> dict[str, Any] | None:
    """The resolved steering of a request, or None where it asks for none.

    Args:
        config: the engine's `VllmConfig`.
        params: the request's `SamplingParams`, or those of a pooling model.
        resumable: whether its prompt grows later.

    Raises:
        SteerError: a steering that cannot be applied; the message is for the caller.
    """
    extra = getattr(params, "extra_args", None) or getattr(params, "extra_kwargs", None) or {}
    if extra.get(NAME) is None:
        return None
    entries = parse(extra[NAME])
    shelf = shelf_of(config)
    if shelf is None:
        raise SteerError(f"This engine has no vectors: start it with {FOLDER}=folder in its environment.")
    reason = obstacle(config)
    if reason is not None:
        raise SteerError(f"This engine cannot be steered: {reason}.")
    if resumable:
        raise SteerError("A request whose prompt grows while it runs cannot be steered; send the prompt as a whole.")
    return resolve(entries, shelf)


def log_request(request: str, params: Any, config: Any) -> None:
    """Log a steered request: its steering, with the vectors' hashes."""
    shelf = shelf_of(config)
    assert shelf is not None
    for each in parse(params.extra_args[NAME]):
        log.info("steerfn: request %s: %s, SHA-256 %s", request, each.model_dump(), shelf.sha256(each.vector))


def key_of(request: Any, start: int, end: int) -> tuple[str, str] | None:
    """The part of a key that says what touched the tokens from `start` to `end`, or None where nothing did.

    Example:
        >>> from types import SimpleNamespace as Some
        >>> from steerfn.engines.vllm._requests import key_of
        >>> regions = {"prompt": {"key": "", "parts": []}, "last": {"key": "a", "parts": []}}
        >>> regions["generated"] = regions["last"]
        >>> params = Some(extra_args={"steerfn": regions})
        >>> request = Some(sampling_params=params, num_prompt_tokens=20)
        >>> key_of(request, 0, 16), key_of(request, 16, 32), key_of(request, 32, 48)
        (None, ('steerfn', '3::13:a'), ('steerfn', '16:a'))
    """
    regions = resolved_of(request.sampling_params)
    if regions is None:
        return None
    last = request.num_prompt_tokens - 1
    runs: list[list[Any]] = []
    for name, low, high in zip(REGIONS, (0, last, last + 1), (last, last + 1, end), strict=True):
        count, key = min(high, end) - max(low, start), regions[name]["key"]
        if count <= 0:
            continue
        if runs and runs[-1][1] == key:
            runs[-1][0] += count
        else:
            runs.append([count, key])
    return (NAME, ":".join(f"{count}:{key}" for count, key in runs)) if any(key for _, key in runs) else None
