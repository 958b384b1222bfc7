"""The state of the page as one value, which a file or a link restores."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard
from urllib.parse import parse_qsl, urlencode

from steerfn.values import DataError

VIEWS = ("compare", "strength", "look", "make")
SCOPES = ("everywhere", "generated", "prompt", "last_prompt_token")
PROMPTS = ("How was your day?", "Tell me about the weather.", "What do you think of Mondays?", "Describe your home.")
ALPHAS = (-4.0, -2.0, 0.0, 2.0, 4.0)
MOST = 1_000_000
"""Characters of a state that is read: a link or a file may come from anyone."""


@dataclasses.dataclass(frozen=True)
class Push:
    """One vector and what is done with it.

    Attributes:
        vector: its name.
        alpha: the strength, in units of the vector.
        site: the one site that it is added at, of those it has, such as "resid_post[14]"; None is all of them.
        scope: the tokens that it is added to.
    """

    vector: str
    alpha: float = 1.0
    site: str | None = None
    scope: str = "everywhere"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise DataError(f"The scope {self.scope!r:.80} is not one of {', '.join(SCOPES)}.")


@dataclasses.dataclass(frozen=True)
class State:
    """Everything that is set on the page: what is shown is a function of it and of the model.

    Attributes:
        view: the tab that is open.
        steering: the vectors; they act together.
        turns: what the user says, one turn after the other; a plain prompt has one.
        chat: put turns into the chat template; False continues the one turn as it is.
        max_new_tokens: tokens of an answer at most.
        sample: sample instead of greedy decoding, both sides with the same random numbers.
        seed: of sampling.
        focus: the name of the vector whose strengths are tried, and along which a text is read.
        alphas: the strengths.
        prompts: what the strengths are tried on.
        metrics: what is measured.
        text: the text that is looked at.
        tokens: how many of its tokens stand before the next one that is shown; 0 is all.
        dataset: the contrast set that ships, in place of texts of one's own.
        positive: texts that show a behaviour.
        negative: texts that show its opposite.
        method: how a vector is made of them.
        position: the tokens that are read.
        layer: the block; None is the middle.
        name: what the vector is saved as.

    Example:
        >>> from steerfn.board import Push, State
        >>> state = State(turns=("Hello.",), steering=(Push("happy", 2.0),))
        >>> State.from_query(state.to_query()) == State.from_json(state.to_json()) == state
        True
    """

    view: str = "compare"
    steering: tuple[Push, ...] = ()
    turns: tuple[str, ...] = ()
    chat: bool = True
    max_new_tokens: int = 60
    sample: bool = False
    seed: int = 0
    focus: str = ""
    alphas: tuple[float, ...] = ALPHAS
    prompts: tuple[str, ...] = PROMPTS
    metrics: tuple[str, ...] = ("length", "distinct_n")
    text: str = "The food was great, but the service was awful."
    tokens: int = 0
    dataset: str = ""
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    method: str = "mean_difference"
    position: str = "mean"
    layer: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise DataError(f"The view {self.view!r:.80} is not one of {', '.join(VIEWS)}.")

    @property
    def focused(self) -> Push:
        """The entry of the vector that is looked at: the one in focus, else the first; with no name where none is."""
        name = self.focus or next((push.vector for push in self.steering), "")
        return next((push for push in self.steering if push.vector == name), Push(name))

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON values."""
        changed = _changed_fields(self)
        if self.steering:
            changed["steering"] = [_changed_fields(push) for push in self.steering]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    @classmethod
    def from_dict(cls, values: Any) -> "State":
        """The inverse of `to_dict`.

        Raises:
            DataError: a field that is not known, or a value that is not of its kind.
        """
        return _read(cls, values, "A state")

    def to_json(self) -> str:
        """The state as the text of a file."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "State":
        """The inverse of `to_json`.

        Raises:
            DataError: no JSON, or as `from_dict`.
        """
        try:
            values = json.loads(text[: MOST + 1]) if len(text) <= MOST else None
        except (ValueError, RecursionError):
            values = None
        if values is None:
            raise DataError("This is not the file of a state; choose one that the page has saved.")
        return cls.from_dict(values)

    def to_query(self) -> str:
        """The state as the query of a link, which stands behind the "?" of the page's address."""
        values = self.to_dict().items()
        return urlencode(
            {
                name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
                for name, value in values
            }
        )

    @classmethod
    def from_query(cls, query: str) -> "State":
        """The inverse of `to_query`. What begins with "__" is the toolkit's own, and left out.

        Raises:
            DataError: as `from_dict`.
        """
        values: dict[str, Any] = {}
        for name, value in parse_qsl(query[:MOST], keep_blank_values=True):
            if not name.startswith("__"):
                values[name] = value if name in TEXTS else _number(value)
        return cls.from_dict(values)


FIELDS = dataclasses.fields(State)
TEXTS = {field.name for field in FIELDS if field.type is str}


def _changed_fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if getattr(value, f.name) != f.default}


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read(kind: Any, values: Any, what: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(values, Mapping) or (kind is Push and "vector" not in values):
        raise DataError(f"{what} must be a mapping{' with a vector' * (kind is Push)}, got {values!r:.80}.")
    unknown = next((name for name in values if name not in fields), None)
    if unknown is not None:
        raise DataError(f"{what} has no field {unknown!r:.80}; it has {', '.join(fields)}.")
    return kind(**{name: _value(fields[name], value) for name, value in values.items()})


def _value(field: Any, value: Any) -> Any:
    """A field's value, of its kind."""
    if field.name == "steering" and isinstance(value, (list, tuple)):
        return tuple(_read(Push, each, "An entry of steering") for each in value)
    some = str(field.type)
    if isinstance(value, (list, tuple)) and "tuple[str" in some and all(isinstance(each, str) for each in value):
        return tuple(value)
    if isinstance(value, (list, tuple)) and "tuple[float" in some and all(map(_is_finite, value)):
        return tuple(map(float, value))
    if field.type is float and _is_finite(value):
        return float(value)
    plain = (str, bool, int)
    if type(value) in plain and field.type in (type(value), type(value) | None) or (value is None and "None" in some):
        return value
    raise DataError(f"The field {field.name!r} of a state does not take {value!r:.80}.")


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
