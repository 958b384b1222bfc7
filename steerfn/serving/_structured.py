"""Structure and tools of an answer: from a request's fields to a grammar and a reader."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.run import (
    Decoding,
    Structure,
    ToolReader,
    choice_grammar,
    compile_structure,
    json_schema_grammar,
    regex_grammar,
)
from steerfn.serving._request_error import RequestError
from steerfn.serving._schemas import Chat, Common, Message, SchemaFormat, StructuredOutputs, ToolChoice
from steerfn.values import SteerError


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: a call's arguments as an object, and a tool's answer with its name.

    Raises:
        RequestError: arguments that are not a JSON object, or the answer to a call that was not made.
    """
    names: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    for i, each in enumerate(messages):
        turn: dict[str, Any] = {"role": "system" if each.role == "developer" else each.role, "content": each.text}
        if each.name is not None:
            turn["name"] = each.name
        if each.tool_calls:
            calls = [(call.id, call.function.name, _arguments(call.function.arguments, i)) for call in each.tool_calls]
            names |= {identifier: name for identifier, name, _ in calls}
            turn["tool_calls"] = [
                {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}
                for identifier, name, arguments in calls
            ]
        if each.tool_call_id is not None:
            if each.tool_call_id not in names:
                raise RequestError(
                    f"messages.{i} answers the tool call {each.tool_call_id!r:.80}, which no message before it makes.",
                    param=f"messages.{i}.tool_call_id",
                )
            turn |= {"tool_call_id": each.tool_call_id, "name": each.name or names[each.tool_call_id]}
        turns.append(turn)
    return turns


def _arguments(text: str, i: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
        text.encode()
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError(
            f"The arguments of a tool call in messages.{i} must be the text of a JSON object, not {text!r:.80}.",
            param=f"messages.{i}.tool_calls",
        )
    return value


def tools_of(body: Common, tokenizer: Any) -> ToolReader | None:
    """The reader of a request's tools; None where it has none, or forbids them.

    Raises:
        RequestError: a tool twice, a choice among none, or a chat template that knows no tools.
    """
    tools = getattr(body, "tools", None)
    choice = getattr(body, "tool_choice", None)
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice asks for a call, and there are no tools; pass tools.", param="tool_choice")
        return None
    names = [tool.function.name for tool in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RequestError(f"Two tools have the name {min(twice)!r}; rename one.", param="tools")
    if isinstance(choice, ToolChoice) and choice.function.name not in names:
        raise RequestError(
            f"tool_choice names the tool {choice.function.name!r}, and there are {', '.join(names)!s:.200}.",
            param="tool_choice",
        )
    if choice == "none":
        return None
    try:
        return ToolReader(tokenizer, [tool.model_dump(exclude_none=True) for tool in tools])
    except SteerError as error:
        raise RequestError(str(error), param="tools") from None


def structure_of(body: Common, tools: ToolReader | None, tokenizer: Any, decoding: Decoding) -> Structure | None:
    """The structure that the answers to a request must keep to, if any.

    Raises:
        RequestError: several structures, one that cannot be enforced, or no package to do so.
    """
    wanted: dict[str, str] = {}
    try:
        if isinstance(body, Chat):
            if tools is not None and body.tool_choice not in (None, "auto"):
                only = body.tool_choice.function.name if isinstance(body.tool_choice, ToolChoice) else None
                wanted["tool_choice"] = tools.grammar(only, body.parallel_tool_calls is not False)
            if isinstance(body.response_format, SchemaFormat):
                wanted["response_format"] = json_schema_grammar(body.response_format.json_schema.schema_)
            elif body.response_format is not None and body.response_format.type == "json_object":
                wanted["response_format"] = json_schema_grammar({"type": "object"})
        if body.structured_outputs is not None:
            wanted["structured_outputs"] = _grammar(body.structured_outputs)
        if not wanted:
            return None
        if len(wanted) > 1 or (tools is not None and "tool_choice" not in wanted):
            others = " and ".join(wanted) if len(wanted) > 1 else f"{next(iter(wanted))} and tools"
            raise RequestError(f"{others} ask for different answers; pass one of them.", param=next(iter(wanted)))
        [(field, grammar)] = wanted.items()
        return compile_structure(tokenizer, grammar, decoding.ends)
    except SteerError as error:
        field = next(iter(wanted), "tool_choice")
        raise RequestError(f"{field}: {error}", param=field, code="structure") from None


def _grammar(wanted: StructuredOutputs) -> str:
    """The grammar of vLLM's `structured_outputs`."""
    given: Mapping[str, Any] = {
        name: value
        for name, value in wanted.model_dump(by_alias=True).items()
        if value is not None and (name, value) != ("json_object", False)
    }
    if len(given) != 1:
        raise RequestError(
            f"structured_outputs must have one of json, json_object, regex, choice and grammar, not {len(given)}.",
            param="structured_outputs",
        )
    [(kind, value)] = given.items()
    if kind == "grammar":
        return value
    if kind == "json_object":
        return json_schema_grammar({"type": "object"})
    return {"json": json_schema_grammar, "regex": regex_grammar, "choice": choice_grammar}[kind](value)
