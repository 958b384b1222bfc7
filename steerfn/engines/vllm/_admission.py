"""A request's steering is checked in the front-end process, when it comes in: what is wrong fails that one alone."""

import logging
from typing import Any

from steerfn._errors import SteerError
from steerfn.engines.vllm._shelf import FOLDER, shelf_of
from steerfn.engines.vllm._spec import NAME, parse, resolve
from steerfn.engines.vllm._support import unsupported

log = logging.getLogger("vllm.plugins.steerfn")


def admit(config: Any, params: Any, *, resumable: bool = False) -> dict[str, Any] | None:
    """The resolved steering of a request, or None where it asks for none.

    Args:
        config: the engine's `VllmConfig`.
        params: the request's `SamplingParams`, or those of a pooling model.
        resumable: whether its prompt grows later.

    Raises:
        SteerError: a steering that cannot be had; the message is for the caller.
    """
    extra = getattr(params, "extra_args", None) or getattr(params, "extra_kwargs", None) or {}
    if extra.get(NAME) is None:
        return None
    asked = parse(extra[NAME])
    shelf = shelf_of(config)
    if shelf is None:
        raise SteerError(f"This engine has no vectors: start it with {FOLDER}=folder in its environment.")
    reason = unsupported(config)
    if reason is not None:
        raise SteerError(f"This engine cannot be steered: {reason}.")
    if resumable:
        raise SteerError("A request whose prompt grows while it runs cannot be steered; send the prompt as a whole.")
    return resolve(asked, shelf)


def told(request: str, params: Any, config: Any) -> None:
    """A line of the log for a steered request: what it asked for, with the vectors' hashes."""
    shelf = shelf_of(config)
    assert shelf is not None
    for each in parse(params.extra_args[NAME]):
        log.info("steerfn: request %s: %s, SHA-256 %s", request, each.model_dump(), shelf.sha256(each.vector))
