"""Further keywords of verbs that hand them on to transformers' `generate`: known, or refused with the nearest name."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from steerfn.model import unwrap_model
from steerfn.run._chat_template import Chat, variables_of
from steerfn.values import SPREAD, DataError, check_tokenizer, unknown_keyword

POPPED = ("assistant_tokenizer", "use_model_defaults", "trust_remote_code", "mm_encoder_outputs", "debug_io")
"""What transformers' `generate` takes and its signature does not show."""
SWITCHES = ("enable_thinking", "thinking", "tools", "documents", "continue_final_message")
"""Switches that many chat templates read."""


def hf_keywords(
    verb: Callable[..., Any] | str, model: Any, tokenizer: Any, chat: Chat, given: Mapping[str, Any]
) -> tuple[Chat, dict[str, Any]]:
    """Part further keywords into switches of the chat template and options of transformers' `generate`.

    Args:
        verb: the function that was called, or its name.
        given: what it got beyond its own keywords.

    Returns:
        `chat`, with the switches in it, and the options.

    Raises:
        DataError: a keyword that neither knows, a switch with `chat=False`, or no tokenizer.
        ModelError: no model.
    """
    check_tokenizer(tokenizer)
    root = unwrap_model(model)
    if not given:
        return chat, {}
    taken = _taken_by_generate(root)
    chat, rest = with_switches(tokenizer, chat, given, taken)
    if given.get("custom_generate") is None:  # which may take anything
        for name in rest:
            if name not in taken or name in MADE_HERE:
                raise DataError(_unknown(verb, name, {*taken, *(variables_of(tokenizer) or ())} - MADE_HERE))
    return chat, rest


def with_switches(
    tokenizer: Any, chat: Chat, given: Mapping[str, Any], taken: Collection[str] = ()
) -> tuple[Chat, dict[str, Any]]:
    """Put keywords that the chat template reads into `chat`.

    Args:
        given: what the verb got beyond its own keywords.
        taken: names that mean something else.

    Returns:
        `chat`, with the switches in it, and the other keywords.

    Raises:
        DataError: a switch with `chat=False`.
    """
    read = {*(variables_of(tokenizer) or ()), "continue_final_message"}.difference(taken)
    switches = {name: value for name, value in given.items() if name in read}
    if switches and chat is False:
        raise DataError(
            f"{', '.join(switches)} goes to the chat template, which chat=False leaves out; pass chat=True."
        )
    rest = {name: value for name, value in given.items() if name not in switches}
    return {**(chat if isinstance(chat, Mapping) else {}), **switches} if switches else chat, rest


def only_switches(
    verb: Callable[..., Any] | str, tokenizer: Any, chat: Chat, given: Mapping[str, Any], known: Collection[str] = ()
) -> Chat:
    """`chat` with switches of the chat template in it, where a verb takes nothing else beyond its own keywords.

    Raises:
        DataError: another keyword, a switch with `chat=False`, or no tokenizer.
    """
    check_tokenizer(tokenizer)
    chat, unknown = with_switches(tokenizer, chat, given)
    for name in unknown:
        names = {*known, *(variables_of(tokenizer) or ())}
        raise DataError(_unknown(verb, name, names, f"it takes {', '.join(sorted(known))}" if known else ""))
    return chat


MADE_HERE = frozenset({"input_ids", "attention_mask", "inputs"})
"""What `generate` takes and the verbs make themselves."""


def _unknown(verb: Callable[..., Any] | str, name: str, known: Collection[str], listed: str = "") -> str:
    """The sentence for a keyword that neither the verb, nor transformers, nor the chat template knows."""
    if name in SWITCHES:
        called = verb if isinstance(verb, str) else verb.__name__
        return (
            f"{called} was given {name}=..., a switch of chat templates, and this tokenizer's template does not read "
            "it; leave it out."
        )
    return unknown_keyword(verb, name, known, listed)


def _taken_by_generate(model: Any) -> set[str]:
    """The keywords that transformers takes in `model.generate`: its own, a config's, and the model's inputs."""
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerationMixin

    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | set(POPPED)
    names |= {name for name in getattr(getattr(model, "generation_config", None), "__dict__", ()) if name[0] != "_"}
    inner = getattr(model, "get_base_model", lambda: model)()
    for method in (getattr(kind, name, None) for kind in (GenerationMixin, type(inner)) for name in METHODS):
        if method is not None:
            names |= {name for name, p in inspect.signature(method).parameters.items() if p.kind not in SPREAD}
    try:
        from transformers.utils.generic import TransformersKwargs

        names |= set(TransformersKwargs.__annotations__)
    except ImportError:  # an older transformers
        pass
    return names - {"self", "transformers_version"}


METHODS = ("generate", "forward", "prepare_inputs_for_generation")
