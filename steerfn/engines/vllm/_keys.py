"""What steering adds to the key of a block of the prefix cache: what touched the block's own tokens.

A block's key contains that of the block before it, so what touched earlier tokens is in it already. Tokens that nothing
touches add nothing: prompts of requests that steer only what they generate share their blocks with everyone's, all but
one that holds the last token of a prompt.
"""

from typing import Any

from steerfn.engines.vllm._spec import NAME, REGIONS, resolved_of


def key_of(request: Any, start: int, end: int) -> tuple[str, str] | None:
    """The part of a key that says what touched the tokens from `start` to `end`, or None where nothing did.

    Example:
        >>> from types import SimpleNamespace as Some
        >>> from steerfn.engines.vllm._keys import key_of
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
