"""Error messages for a request's body: the field, its value, and the values that are allowed."""

import difflib
import re
from typing import Any

from steerfn.serving._request_error import RequestError
from steerfn.serving._schemas import ChatCompletion, Completion, Message, SteeringRequest

FIELD = re.compile(r"[a-z][a-z_]*")
FIELDS = {name for each in (ChatCompletion, Completion, Message, SteeringRequest) for name in each.model_fields}
TAGS = {"str", "int", "float", "bool", "list", "dict", "none", "literal"}
"""What pydantic writes into a path besides fields: the branches of a union."""
KINDS = {
    "string_type": "a text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
    "finite_number": "a finite number",
}
BOUNDS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "literal_error": "{expected}",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "too_short": "a list that is not empty",
    "too_long": "empty or null, since this server has nothing of the kind",
}


def explain(errors: list[Any]) -> RequestError:
    """The refusal of a body that pydantic found errors in."""
    if errors[0]["type"] == "json_invalid":
        return RequestError(f"The body is not JSON: {errors[0].get('ctx', {}).get('error', 'it cannot be read')}.")
    # Of a union's branches, the one that the value came farthest in is the one that was meant.
    error = max(errors, key=lambda each: (len(_path(each["loc"])), each["type"] not in KINDS))
    param = ".".join(map(str, _path(error["loc"])))[:100] or None
    where = param or "The body"
    kind, value, context = error["type"], error.get("input"), error.get("ctx") or {}
    same = [each for each in errors if _path(each["loc"]) == _path(error["loc"])]
    if kind == "missing":
        return RequestError(f"{where} is missing.", param=param)
    if kind in ("extra_forbidden", "invalid_key"):
        name = str(error["loc"][-1])[:64]
        near = difflib.get_close_matches(name, FIELDS, 1)
        hint = f"did you mean {near[0]!r}?" if near and near[0] != name else "leave it out."
        return RequestError(f"{name!r} is not a field that this server knows here; {hint}", param=param)
    if kind == "string_unicode" or _has_half(value):
        return RequestError(f"{where} has half of a surrogate pair, not a character; leave it out.", param=param)
    if kind == "value_error":
        return RequestError(f"{where}: {context['error']}.", param=param)
    if kind == "too_long" and context.get("max_length"):
        may = f"a list of at most {context['max_length']}"
    elif kind in BOUNDS:
        may = BOUNDS[kind].format(**context)
    else:
        may = " or ".join(dict.fromkeys(KINDS[each["type"]] for each in same if each["type"] in KINDS))
    if not may:
        return RequestError(f"{where}: {error['msg']}"[:500], param=param)
    return RequestError(f"{where} must be {may}, not {_format_value(value)}.", param=param)


def _path(location: Any) -> list[str | int]:
    return [
        part
        for part in location[1:]
        if isinstance(part, int) or (FIELD.fullmatch(part) is not None and part not in TAGS)
    ]


def _has_half(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


def _format_value(value: Any) -> str:
    """A value as JSON writes it, shortened to what a message can hold."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return f"{value:.6g}" if isinstance(value, float) or abs(value) < 10**300 else "a number of 300 digits and more"
    return f"{str(value)[:60]!r}"
