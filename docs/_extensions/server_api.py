"""The server's addresses and the fields of its requests, from its OpenAPI schema."""

from typing import Any

from families import build  # of the tests
from markdown_table import markdown_table
from words import words  # of the tests

import steerfn.serving as serving

BODIES = {
    "SteeringRequest": "The field `steering`: one of these, a list of them, or a name alone",
    "Completion": "`POST /v1/completions`",
    "ChatCompletion": "`POST /v1/chat/completions`",
}


def sections() -> str:
    """The addresses, then the fields of each body."""
    schema = serving.app(build("llama"), words(), admin_keys=["a-key-of-an-administrator-0123456789"]).openapi()
    rows = [
        [f"`{method.upper()} {path}`", ", ".join(sorted(operation["responses"]))]
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    parts = ["## Addresses", markdown_table(["address", "answers with"], rows)]
    for name, title in BODIES.items():
        part = schema["components"]["schemas"][name]
        required = part.get("required", [])
        fields = [
            [f"`{field}`" + (" (required)" if field in required else ""), kind(each), limits(each), default(each)]
            for field, each in part["properties"].items()
        ]
        parts += [f"## {title}", markdown_table(["field", "type", "limits", "default"], fields)]
    return "\n\n".join(parts)


def alternatives(field: dict[str, Any]) -> list[dict[str, Any]]:
    """The kinds of value that a field may have."""
    return [each for kind_ in field.get("anyOf", [field]) for each in kind_.get("oneOf", [kind_])]


def kind(field: dict[str, Any]) -> str:
    """The type of a field in words."""
    words_ = []
    for each in alternatives(field):
        if "enum" in each or "const" in each:
            words_.append(
                ", ".join(
                    f'`"{value}"`' if isinstance(value, str) else f"`{value}`"
                    for value in each.get("enum", [each.get("const")])
                )
            )
        elif each.get("type") == "array":
            words_.append(f"list of {kind(each.get('items', {}))}")
        elif each.get("type") != "null":
            words_.append(each.get("type") or each.get("$ref", "anything").rpartition("/")[2])
    return " or ".join(dict.fromkeys(words_))


def limits(field: dict[str, Any]) -> str:
    """What a field's value may be: bounds of numbers, lengths of lists and texts."""
    named = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    named |= {"maxItems": "entries at most", "maxLength": "characters at most"}
    said = [
        f"{value} {word}" if key.startswith("max") and key != "maximum" else f"{word} {value}"
        for each in alternatives(field)
        for key, word in named.items()
        if (value := each.get(key)) is not None
    ]
    return ", ".join(dict.fromkeys(said))


def default(field: dict[str, Any]) -> str:
    """The default of a field as JSON writes it."""
    value = field.get("default")
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else repr(value)}`"
