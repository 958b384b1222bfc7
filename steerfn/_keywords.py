"""The further keywords of verbs that hand them on to transformers' `generate`: known, or refused with the nearest name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
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
    "pairs": "pass the texts of both sides: positive=[...], negative=[...]",
    "vector": "the vector is the argument after the prompts",
    "v": "the vector is the argument after the prompts",
    "strength": "the strength is alpha",
    "coefficient": "the strength is alpha",
    "multiplier": "the strength is alpha",
    "max_tokens": "the number of new tokens is max_new_tokens",
    "template": "switches of the chat template are keywords of their own, or chat={'enable_thinking': False}",
    "chat_template_kwargs": "switches of the chat template are keywords of their own, or chat={'enable_thinking': False}",
    "input_ids": "token ids are prompts: pass a list of ints or a tensor in their place",
    "attention_mask": "prompts are padded and masked here; pass them one by one, without padding",
    "stop": "texts end at stop_strings=[...]",
    "device": "the model says where it runs",
}
"""What is meant by names that others use."""


def hf_keywords(
    verb: Callable[..., Any], model: Any, tokenizer: Any, chat: Chat, given: Mapping[str, Any]
) -> tuple[Chat, dict[str, Any]]:
    """Part further keywords into switches of the chat template and options of transformers' `generate`.

    Args:
        verb: the function that was called.
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
    read = {*(variables_of(tokenizer) or SWITCHES), "continue_final_message"}
    switches = {name: value for name, value in given.items() if name in read and name not in taken}
    rest = {name: value for name, value in given.items() if name not in switches}
    if given.get("custom_generate") is None:  # which may take anything
        own = [name for name, p in inspect.signature(verb).parameters.items() if p.kind is not p.VAR_KEYWORD]
        for name in rest:
            if name not in taken or name in REFUSED:
                raise DataError(unknown_keyword(verb.__name__, name, [*own, *sorted(taken - REFUSED), *sorted(read)]))
    if not switches:
        return chat, rest
    if chat is False:
        raise DataError(
            f"{', '.join(switches)} goes to the chat template, which chat=False leaves out; pass chat=True or leave "
            "chat at its default."
        )
    return {**(chat if isinstance(chat, Mapping) else {}), **switches}, rest


REFUSED = frozenset({"input_ids", "attention_mask", "inputs", "pairs"})
"""What `generate` takes and the verbs make themselves."""


def unknown_keyword(verb: str, name: str, known: list[str], listed: str = "") -> str:
    """The sentence for a keyword that a verb does not have, with what was probably meant."""
    if name in SWITCHES and name not in known:
        return f"{verb} was given {name}, a switch of chat templates, and this tokenizer's does not read it; leave it out."
    near = difflib.get_close_matches(name, known, 1, 0.7)
    hint = HINTS.get(name) or (f"did you mean {near[0]!r}?" if near else "")
    return f"{verb} has no option {name!r}; " + (hint or listed or "see help() for those that it has") + (
        "" if hint.endswith("?") else "."
    )


def _taken_by_generate(model: Any) -> set[str]:
    """The keywords that transformers takes in `model.generate`: its own, a config's, and the model's inputs."""
    from transformers import GenerationConfig, GenerationMixin

    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | set(POPPED)
    names |= {name for name in getattr(getattr(model, "generation_config", None), "__dict__", ()) if name[0] != "_"}
    inner = getattr(model, "get_base_model", lambda: model)()
    for method in (GenerationMixin.generate, *(getattr(type(inner), n, None) for n in ("generate", *INPUTS))):
        if method is not None:
            names |= {name for name, p in inspect.signature(method).parameters.items() if p.kind not in SPREAD}
    try:
        from transformers.utils import TransformersKwargs

        names |= set(TransformersKwargs.__annotations__)
    except ImportError:  # an older transformers
        pass
    return names - {"self", "transformers_version"}


INPUTS = ("forward", "prepare_inputs_for_generation")
SPREAD = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
