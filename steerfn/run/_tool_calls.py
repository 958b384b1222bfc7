"""Tool calls as families of models write them: how they are read, and the grammar that makes a model write them."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.operators import tool_marks
from steerfn.run._structure import json_rule
from steerfn.values import DataError

MOST = 8
"""Calls of one answer at most where a grammar makes them; a model in noise would never come to an end."""


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call that a model has written.

    Attributes:
        name: the tool.
        arguments: a JSON object, as text.
        identifier: by which its result names it; "" until `ReplyReader` gives it one.
    """

    name: str
    arguments: str
    identifier: str = ""


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer, taken apart.

    Attributes:
        content: what it says.
        calls: the tools that it calls, in order.
    """

    content: str
    calls: tuple[ToolCall, ...] = ()


class NotYet(Exception):
    """More text will tell."""


@dataclasses.dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes tool calls: each between two marks, as a JSON object.

    Attributes:
        opens: the mark before a call.
        closes: the mark after it.
        field: the name of a call's arguments.
    """

    opens: str
    closes: str
    field: str = "arguments"

    def read(self, text: str, names: Sequence[str], complete: bool) -> Reply:
        """Take an answer apart; what is no call, or was cut off within one, is content.

        Of an answer that goes on, only what is certain is told: the reply to a longer text begins with that to a
        shorter one.

        Args:
            text: the answer so far, with its marks.
            names: of the tools.
            complete: whether nothing more will come.
        """
        parts, calls, at = [""], list[ToolCall](), 0
        while (mark := text.find(self.opens, at)) >= 0:
            after = mark + len(self.opens)
            try:
                made, end = self._calls_at(text, after, complete)
            except NotYet:
                if not complete:
                    parts[-1] += text[at:mark]
                    return Reply(_join_content(parts, certain=False), tuple(calls))
                made, end = [], after
            if made:
                parts[-1] += text[at:mark]
                parts.append("")
                calls += made
            else:
                parts[-1] += text[at:after]
                end = after
            at = end
        parts[-1] += text[at:] if complete else text[at : len(text) - _overlap(text[at:], self.opens)]
        return Reply(_join_content(parts, complete), tuple(calls))

    def _calls_at(self, text: str, at: int, complete: bool) -> tuple[list[ToolCall], int]:
        """The calls behind a mark, and where they end; none where something else stands there."""
        value, end = _json_at(text, at)
        call = as_call(value)
        if call is None:
            return [], at
        rest = text[end:].lstrip()
        if rest.startswith(self.closes):
            return [call], text.index(self.closes, end) + len(self.closes)
        if not complete and (self.closes.startswith(rest) or self.opens.startswith(rest)):
            raise NotYet
        # Small models forget the mark; another call, or the end, says as much.
        return ([call], end) if not rest or rest.startswith(self.opens) else ([], at)

    def grammar(self, tools: Sequence[Mapping[str, Any]], several: bool, marks: Mapping[str, int]) -> str:
        """The grammar of an answer that calls some of the tools and says nothing else.

        Args:
            tools: functions with name and parameters.
            several: whether it may make more than one call.
            marks: the ids of the marks that are tokens of their own.
        """
        kinds = range(len(tools))
        rules = [
            self._start(f"{{0,{MOST - 1}}}" if several else "", marks),
            "call: " + " | ".join(f"call_{i}" for i in kinds),
        ]
        for i, tool in enumerate(tools):
            before, after = self._around(tool["name"], marks)
            # Each has a schema of its own, whose references lead nowhere else.
            rules += [f"call_{i}: {before} arguments_{i} {after}", f"arguments_{i}: {json_rule(_parameters(tool))}"]
        return "\n".join(rules)

    def _start(self, more: str, marks: Mapping[str, int]) -> str:
        """The first rule; `more` says how many calls may follow the first, or nothing."""
        del marks
        return f'start: call ("\\n" call){more}' if more else "start: call"

    def _around(self, name: str, marks: Mapping[str, int]) -> tuple[str, str]:
        """The terminals before and after the arguments of a call."""
        before, after = self._object(name)
        return f'{_terminal(self.opens, marks)} "\\n" {before}', f'{after} "\\n" {_terminal(self.closes, marks)}'

    def _object(self, name: str) -> tuple[str, str]:
        """The same where the call is a JSON object."""
        return json.dumps(f'{{"name": "{name}", "{self.field}": '), json.dumps("}")


@dataclasses.dataclass(frozen=True)
class MistralFormat(ToolFormat):
    """Mistral's: one mark, then a JSON list of calls, or (later models) a name, a mark, and its arguments."""

    def _calls_at(self, text: str, at: int, complete: bool) -> tuple[list[ToolCall], int]:
        start = re.compile(r"\s*").match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
        if start == len(text):
            raise NotYet
        if text[start] in "[{":
            value, end = _json_at(text, start)
            calls = [as_call(each) for each in (value if isinstance(value, list) else [value])]
            return ([call for call in calls if call], end) if calls and all(calls) else ([], at)
        head = re.compile(r"([\w.-]{1,64})(?:\[CALL_ID\]\w*)?(\[ARGS\])?").match(text, start)
        if head is None:
            return [], at
        rest = text[head.end() :]
        if (not complete and not rest) or (not head[2] and "[ARGS]".startswith(rest)):
            raise NotYet
        value, end = _json_at(text, head.end())
        call = as_call({"name": head[1], "arguments": value})
        return ([call], end) if call else ([], at)

    def _start(self, more: str, marks: Mapping[str, int]) -> str:
        if "[ARGS]" in marks:  # the later models'
            return f"start: call call{more}" if more else "start: call"
        listed = f'call (", " call){more}' if more else "call"
        return f'start: {_terminal(self.opens, marks)} "[" {listed} "]"'

    def _around(self, name: str, marks: Mapping[str, int]) -> tuple[str, str]:
        if "[ARGS]" not in marks:
            return self._object(name)
        return f"{_terminal(self.opens, marks)} {json.dumps(name)} {_terminal('[ARGS]', marks)}", ""


@dataclasses.dataclass(frozen=True)
class LlamaFormat(ToolFormat):
    """Llama 3's: the answer is a JSON object, or several with ";" between them, behind a mark or none."""

    def read(self, text: str, names: Sequence[str], complete: bool) -> Reply:
        """Take an answer apart, as in `ToolFormat`; JSON that names no tool is content."""
        body = text.lstrip()
        marked = body.startswith(self.opens)
        body = body.removeprefix(self.opens).lstrip()
        if not complete:
            undecided = marked or not body or body[0] == "{" or self.opens.startswith(body)
            return Reply("" if undecided else text.rstrip())
        calls, at = list[ToolCall](), 0
        try:
            while at < len(body):
                value, at = _json_at(body, at)
                call = as_call(value, self.field)
                if call is None or call.name not in names:
                    return Reply(text)
                calls.append(call)
                at += len(body[at:]) - len(body[at:].lstrip(" \n;"))
        except NotYet:
            return Reply(text)
        return Reply("", tuple(calls)) if calls else Reply(text)

    def _start(self, more: str, marks: Mapping[str, int]) -> str:
        del more, marks
        return "start: call"  # these models are trained to make one call at a time

    def _around(self, name: str, marks: Mapping[str, int]) -> tuple[str, str]:
        del marks
        return self._object(name)


FORMATS: Mapping[str, ToolFormat] = {
    "hermes": ToolFormat("<tool_call>", "</tool_call>"),
    "mistral": MistralFormat("[TOOL_CALLS]", ""),
    "llama": LlamaFormat("<|python_tag|>", "", "parameters"),
}
"""The formats that are read here."""


def format_of(tokenizer: Any, template: str) -> ToolFormat | None:
    """The format that a chat template writes calls in; None for one that is not read here."""
    try:
        opens = tool_marks(tokenizer).opens
    except DataError:  # most Llama templates do not show their mark
        opens = FORMATS["llama"].opens if '"parameters"' in template and '"name"' in template else ""
    known = {each.opens: each for each in FORMATS.values()}
    return None if "<function=" in template else known.get(opens)  # Qwen 3 Coder's calls are no JSON


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments: those that it names, where it does not say otherwise."""
    return {"type": "object", "properties": {}, "additionalProperties": False, **(tool.get("parameters") or {})}


def _join_content(parts: Sequence[str], certain: bool) -> str:
    """The content around calls; the white space next to them is theirs."""
    if len(parts) == 1:
        return parts[0] if certain else parts[0].rstrip()
    rest = [part.strip() for part in parts[1:]]
    return "\n".join(part for part in (parts[0].rstrip(), *rest) if part)


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


def _terminal(mark: str, marks: Mapping[str, int]) -> str:
    return f"<[{marks[mark]}]>" if mark in marks else json.dumps(mark)


def as_call(value: Any, field: str = "arguments") -> ToolCall | None:
    """A call out of JSON, if it is one; arguments may be an object, or the text of one."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get(field, value.get("arguments", value.get("parameters", {})))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, Mapping):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _json_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON object or list at a place, and where it ends; None where something else stands there.

    Raises:
        NotYet: the text ends before it does.
    """
    while at < len(text) and text[at].isspace():
        at += 1
    if at == len(text):
        raise NotYet
    if text[at] not in "{[":
        return None, at
    depth, quoted, escaped = 0, False, False
    for i in range(at, len(text)):
        character = text[i]
        if quoted:
            quoted, escaped = escaped or character != '"', character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if not depth:
                try:
                    return json.loads(text[at : i + 1]), i + 1
                except (ValueError, RecursionError):
                    return None, at
    raise NotYet
