"""Further keywords of verbs that hand them on to transformers' `generate`: known, or refused with the nearest name."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from steerfn._blocks import unwrapped
from steerfn._chat_template import Chat, variables_of
from steerfn._errors import DataError
from steerfn._text import check_tokenizer

POPPED = ("assistant_tokenizer", "use_model_defaults", "trust_remote_code", "mm_encoder_outputs", "debug_io")
"""What transformers' `generate` takes and its signature does not show."""
SWITCHES = ("enable_thinking", "thinking", "tools", "documents", "continue_final_message")
"""Switches that many chat templates read."""
HINTS = {
    "layers": "sites= says where to steer (an int means resid_post), where this verb takes it; a vector has its sites",
    "layer": "sites= says where to steer (an int means resid_post), where this verb takes it; a vector has its sites",
    "system": "pass a conversation: [{'role': 'system', 'content': ...}, {'role': 'user', 'content': ...}]",
    "system_prompt": "pass a conversation: [{'role': 'system', 'content': ...}, {'role': 'user', 'content': ...}]",
    "messages": "conversations are prompts: pass the list of messages in their place",
    "pairs": "pass the texts of both sides, positive and negative",
    "vector": "the vector is the argument after the prompts",
    "v": "the vector is the argument after the prompts",
    "strength": "the strength is alpha",
    "coefficient": "the strength is alpha",
    "multiplier": "the strength is alpha",
    "max_tokens": "the number of new tokens is max_new_tokens",
    "template": "switches of the chat template go into chat={'enable_thinking': False}",
    "chat_template_kwargs": "switches of the chat template go into chat={'enable_thinking': False}",
    "input_ids": "token ids are prompts: pass a list of ints or a tensor in their place",
    "attention_mask": "prompts are padded and masked here; pass them one by one, without padding",
    "stop": "texts end at stop_strings=[...]",
    "device": "the model says where it runs",
}
"""What is meant by names that others use."""


def hf_keywords(
    verb: Callable[..., Any] | str, model: Any, tokenizer: Any, chat: Chat, given: Mapping[str, Any]
) -> tuple[Chat, dict[str, Any]]:
    """Part further keywords into switches of the chat template and options of transformers' `generate`.

    Args:
        verb: the function that was called, or its name.
        model: the model.
        tokenizer: its tokenizer.
        chat: as the verb takes it.
        given: what it got beyond its own keywords.

    Returns:
        `chat`, with the switches in it, and the options.

    Raises:
        DataError: a keyword that neither knows, a switch with `chat=False`, or no tokenizer.
        ModelError: no model.
    """
    check_tokenizer(tokenizer)
    root = unwrapped(model)
    if not given:
        return chat, {}
    taken = _taken_by_generate(root)
    chat, rest = with_switches(tokenizer, chat, given, taken)
    if given.get("custom_generate") is None:  # which may take anything
        for name in rest:
            if name not in taken or name in MADE_HERE:
                raise DataError(unknown_keyword(verb, name, {*taken, *(variables_of(tokenizer) or ())} - MADE_HERE))
    return chat, rest


def with_switches(
    tokenizer: Any, chat: Chat, given: Mapping[str, Any], taken: Collection[str] = ()
) -> tuple[Chat, dict[str, Any]]:
    """Put keywords that the chat template reads into `chat`.

    Args:
        tokenizer: the model's.
        chat: as the verb takes it.
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
        raise DataError(unknown_keyword(verb, name, names, f"it takes {', '.join(sorted(known))}" if known else ""))
    return chat


MADE_HERE = frozenset({"input_ids", "attention_mask", "inputs"})
"""What `generate` takes and the verbs make themselves."""


def unknown_keyword(verb: Callable[..., Any] | str, name: str, known: Collection[str], listed: str = "") -> str:
    """The sentence for a keyword that a verb does not have, with what was probably meant.

    Args:
        verb: the function that was called, or its name.
        name: the keyword.
        known: what it takes beyond its own keywords.
        listed: what is said where nothing is near.
    """
    own = [] if isinstance(verb, str) else inspect.signature(verb).parameters.values()
    names = [p.name for p in own if p.kind is not p.VAR_KEYWORD]
    called = verb if isinstance(verb, str) else verb.__name__
    if name in SWITCHES:
        return f"{called} was given {name}={SWITCH}; leave it out."
    near = difflib.get_close_matches(name, [*names, *sorted(known)], 1, 0.7)
    if name in HINTS:
        return f"{called} has no option {name!r}; {HINTS[name]}."
    return f"{called} has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; {listed or HELP}.")


SWITCH = "..., a switch of chat templates, and this tokenizer's template does not read it"
HELP = "help() lists those that it has"


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
SPREAD = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
