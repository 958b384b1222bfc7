"""How one answer of a chat model is generated: the fields of the frameworks' classes, and what calls may override."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.values import DataError, finite_number, integer, positive_int

SETTINGS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "sequence_bias",
    "suppress_tokens",
)
"""What `generation_kwargs` may hold: settings of transformers' `generate` that change which token is the best one."""


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """How one answer is generated; what the frameworks' classes have as fields, and calls may override.

    Attributes:
        steering: an operator, a vector, or None for the plain model.
        alpha: strength of a vector; None is 1.
        max_new_tokens: tokens at most.
        temperature: 0 takes the most probable token.
        top_p: the share of probability that is sampled from.
        seed: of the sampling; None draws one.
        stop: texts that end an answer, and are left out of it.
        generation_kwargs: see `SETTINGS`.
        tools: functions that the model may call, as OpenAI's API has them. These last four are a call's alone.
        tool_choice: "auto" (default), "none", "required" (also "any", or True), or the name of the tool to call.
        parallel_tool_calls: whether one answer may have several calls.
        response_format: `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": ...}}`.

    Raises:
        DataError: a value of the wrong kind.
    """

    steering: Any = None
    alpha: Any = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    generation_kwargs: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        positive_int("max_new_tokens", self.max_new_tokens)
        finite_number("temperature", self.temperature, least=0, hint="0 is greedy")
        finite_number("top_p", self.top_p, above=0, most=1, hint="it is a share of the probability")
        if self.seed is not None:
            integer("seed", self.seed, -(2**63), 2**64 - 1, hint="None draws one")
        if not isinstance(self.stop, (str, list, tuple, type(None))) or not all(
            isinstance(text, str) and text for text in self.stops
        ):
            raise DataError(f"stop is a text or a list of texts, none of them empty, not {self.stop!r:.80}.")
        if not isinstance(self.generation_kwargs, (Mapping, type(None))):
            raise DataError(f"generation_kwargs is a mapping of names to values, not {self.generation_kwargs!r:.80}.")
        if unknown := sorted(map(str, set(self.generation_kwargs or ()) - set(SETTINGS))):
            raise DataError(
                f"generation_kwargs has no {', '.join(unknown)}; it takes {', '.join(SETTINGS)}, and lengths, sampling "
                "and stop texts are arguments of their own."
            )

        self._check_tools()

    def _check_tools(self) -> None:
        names, choice = self.tool_names, self.tool_choice
        if isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):  # as OpenAI's API writes it
            choice = choice["function"].get("name", choice)
        choice = "required" if choice is True or choice == "any" else choice
        if choice not in (None, "auto", "none", "required", *names):
            raise DataError(
                "tool_choice must be 'auto', 'none', 'required' or the name of a tool "
                f"({', '.join(names) or 'there are no tools'}), got {self.tool_choice!r:.80}."
            )
        object.__setattr__(self, "tool_choice", choice)
        if self.tool_choice == "required" and not names:
            raise DataError("tool_choice='required' asks for a call, and there are no tools; pass tools.")
        form = self.response_format
        kind = None if form is None else form.get("type") if isinstance(form, Mapping) else form
        if form is not None and kind not in ("text", "json_object", "json_schema"):
            raise DataError(f"response_format has the type 'text', 'json_object' or 'json_schema', not {kind!r:.80}.")
        if isinstance(form, Mapping) and kind == "json_schema" and "schema" not in (form.get("json_schema") or ()):
            raise DataError(
                "response_format of the type 'json_schema' has its schema in json_schema: {'type': 'json_schema', "
                f"'json_schema': {{'schema': ...}}}}; got {form!r:.80}."
            )

    @property
    def tool_names(self) -> list[str]:
        """The names of the tools.

        Raises:
            DataError: a tool that is no function with a name.
        """
        try:
            return [str(tool["function"]["name"]) for tool in self.tools or ()]
        except (KeyError, TypeError) as error:
            raise DataError(
                "tools must be functions as OpenAI's API has them, such as "
                f"{{'type': 'function', 'function': {{'name': 'now'}}}}, got {self.tools!r:.80}."
            ) from error

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def but(self, **changes: Any) -> "ChatOptions":
        """A copy with a call's own options; another steering does not inherit this one's alpha.

        Raises:
            DataError: an unknown name, or a value of the wrong kind.
        """
        known = (*OPTIONS, *OF_CALLS)
        if unknown := sorted(set(changes) - set(known)):
            raise DataError(f"A call takes {', '.join(known)}, not {', '.join(unknown)}; leave it out.")
        if "steering" in changes:
            changes = {"alpha": None, **changes}
        return dataclasses.replace(self, **changes)


OF_CALLS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
OPTIONS = tuple(field.name for field in dataclasses.fields(ChatOptions) if field.name not in OF_CALLS)
