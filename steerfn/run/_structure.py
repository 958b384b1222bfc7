"""Answers that keep to a grammar (a JSON schema, a regex, a context-free one), through llguidance."""

import dataclasses
import json
import re
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfn.values import DataError, ModelError, import_extra

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line: where the white space between tokens is free, a model may write nothing else for ever."""

SNIPPET = re.compile(r"^at \d+\(\d+\): (failed to compile )?|\n\s*\d+ \|.*", re.DOTALL)
"""The part of llguidance's errors that shows the grammar."""


class StructureError(ModelError):
    """A text that cannot go on within its grammar."""


def json_schema_grammar(schema: Any) -> str:
    """The grammar of the JSON texts that satisfy a schema.

    Raises:
        DataError: neither a schema nor a boolean.
    """
    if not isinstance(schema, (Mapping, bool)):
        raise DataError(f"A JSON schema must be an object, got {schema!r:.80}.")
    return f"start: {json_rule(schema)}"


def json_rule(schema: Any) -> str:
    """The right side of a rule of a grammar, for the JSON texts that satisfy a schema."""
    options = {"x-guidance": {**COMPACT}}
    if schema is True:
        schema = {}
    return f"%json {json.dumps({**schema, **options} if isinstance(schema, Mapping) else schema)}"


def regex_grammar(pattern: str) -> str:
    """The grammar of the texts that a regular expression matches whole."""
    return json.dumps({"grammars": [{"lark_grammar": "start: TEXT\nTEXT: " + f"/{_slashes(pattern)}/"}]})


def _slashes(pattern: str) -> str:
    """A pattern as it stands between slashes."""
    out, escaped = [], False
    for character in pattern:
        if character == "/" and not escaped:
            out.append("\\")
        escaped = character == "\\" and not escaped
        out.append("\\n" if character == "\n" else character)
    return "".join(out)


def choice_grammar(choices: Any) -> str:
    """The grammar of a few texts, one of which is to be written."""
    return "start: " + " | ".join(json.dumps(each) for each in choices)


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A grammar, compiled for a tokenizer.

    Attributes:
        start: makes a matcher at the beginning of a text.
    """

    _matcher: Any

    def start(self) -> "Matcher":
        """A matcher at the beginning of a text."""
        return Matcher(self._matcher.deep_copy())


def compile_structure(tokenizer: Any, grammar: str, ends: frozenset[int]) -> Structure:
    """Compile a grammar in llguidance's syntax (a dialect of Lark).

    Args:
        tokenizer: the model's; a fast one.
        grammar: the grammar.
        ends: the tokens that end a text, which may come where it is complete.

    Raises:
        SteerError: llguidance is not installed.
        DataError: a grammar that cannot be enforced, a model whose texts do not end, or a slow tokenizer.

    Source: Willard & Louf 2023, "Efficient Guided Generation for Large Language Models"; Moskal et al., llguidance.
    """
    matcher = import_extra("llguidance", "structure").LLMatcher(_vocabulary(tokenizer, ends), grammar, log_level=0)
    first = matcher.deep_copy()
    first.compute_bitmask()  # some grammars fail at their first token only
    if first.is_error():
        raise DataError(f"This structure cannot be enforced: {_reason(first)}; simplify it.")
    return Structure(matcher)


def _reason(matcher: Any) -> str:
    """The error of llguidance, without the grammar (nobody wrote it as it stands there) and its parser's state."""
    reason = SNIPPET.sub("", matcher.get_error()).partition("<state>")[0].replace("\\n", " ")
    return f"{' '.join(reason.split()):.300}"


class Matcher:
    """A place in a grammar; it moves with each token.

    Args:
        matcher: llguidance's.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed_tokens(self, size: int) -> Tensor:
        """Which of so many tokens may come next, bool `[size]`.

        Raises:
            StructureError: none, or the grammar has grown beyond what is computed.
        """
        mask = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")[:size]
        self._check()
        if not mask.any():
            raise StructureError("No token of this model's vocabulary goes on within the structure; simplify it.")
        # A model may have more rows of logits than its tokenizer has tokens.
        return torch.from_numpy(np.pad(mask, (0, size - len(mask))).astype(bool))

    def consume(self, token: int) -> None:
        """Move on by the token that came.

        Raises:
            StructureError: it is not allowed.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise StructureError(f"The structure cannot be enforced any further: {_reason(self._matcher)}")


_vocabularies: "weakref.WeakKeyDictionary[Any, dict[frozenset[int], Any]]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _vocabulary(tokenizer: Any, ends: frozenset[int]) -> Any:
    """A tokenizer as llguidance reads it, made once: it takes seconds."""
    if not ends:
        raise DataError(
            "A structured answer ends with the model's end-of-text token, and this model has none; set "
            "generation_config.eos_token_id."
        )
    with _lock:
        made = _vocabularies.setdefault(tokenizer, {})
        if ends not in made:
            try:
                made[ends] = import_extra("llguidance.hf", "structure").from_tokenizer(
                    tokenizer, eos_token=sorted(ends)
                )
            except ValueError as error:
                raise DataError(
                    f"A structured answer needs a fast tokenizer, and {type(tokenizer).__name__} cannot be read as one "
                    f"({error!s:.200}); load it with use_fast=True."
                ) from error
        return made[ends]
