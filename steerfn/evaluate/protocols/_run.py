"""How a protocol is run: the options that all take, the conditions that are compared, and how they are carried out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from typing_extensions import TypedDict

from steerfn.discover import random_vector
from steerfn.evaluate._against_random import FEWEST_DRAWS
from steerfn.evaluate._configs import configs_of
from steerfn.evaluate._outcome import RANDOM, STEERED, Outcome
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._statistics import check_intervals
from steerfn.evaluate._tally import Values, outcome
from steerfn.model import layout, run_provenance, unwrap_model
from steerfn.operators import Make, Operator, Scope, add, as_vector
from steerfn.output import progress_bar
from steerfn.run import (
    Chat,
    Decoding,
    Item,
    Scorer,
    checked_chat,
    decoding_of,
    generate_many,
    limit_of,
    seed_of_rows,
)
from steerfn.values import (
    DataError,
    ModelIdentity,
    SteeringVector,
    finite_number,
    integer,
    json_sha256,
    number_groups_by_kind,
    positive_int,
    unknown_keyword,
)
from steerfn.verbs import check_vector, warn_of_empty

T = TypeVar("T")


class ProtocolOptions(TypedDict, total=False):
    """The keywords that every protocol takes.

    Attributes:
        controls: how many random vectors of the same norm are run beside the vector (default 5; fewer carry no claim),
            or a mapping of names to control vectors of your own, such as one found with shuffled labels.
        limit: how many items to take, drawn with `seed`; None (default) takes all. The same item twice counts once.
        groups: a label for each item of the data, where several belong together (the answers of one question, the
            prompts of one source): their mean is one unit, so that signs are flipped, and units resampled, by group.
            Where there are items of several kinds (`harmful` and `harmless`; `data`, `questions` and `prompts`), the
            labels of one kind after those of the other, or a mapping of kinds to labels.
        seed: of the drawn items, the random vectors, sampling, and the intervals.
        chat: True puts prompts into the chat template; None does so where there is one; False takes them as they are.
        batch_size: rows at once; "auto" fits them to the device.
        level: of the intervals. Default 0.95.
        progress: show progress bars on stderr.
    """

    controls: int | Mapping[str, SteeringVector]
    limit: int | None
    groups: Any
    seed: int
    chat: Chat
    batch_size: int | str
    level: float
    progress: bool


class SteeringOptions(ProtocolOptions, total=False):
    """The keywords of protocols in which the caller chooses how the vector steers.

    Attributes:
        scope: the tokens to steer, as in `at`; None is all of them.
        make: how a vector and a strength become an operator: `sf.add` (default), `sf.rotate`, a function.
    """

    scope: Scope | None
    make: Make


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolRun:
    """One run of a protocol: its name and the options, checked.

    Attributes:
        protocol: its name, for errors.
    """

    protocol: str
    scope: Scope | None = None
    make: Make = add
    controls: int | Mapping[str, SteeringVector] = FEWEST_DRAWS
    limit: int | None = None
    seed: int = 0
    chat: Chat = None
    batch_size: int | str = "auto"
    level: float = 0.95
    progress: bool = True
    groups: Any = None

    @classmethod
    def of(cls, protocol: str, options: Mapping[str, Any], **defaults: Any) -> "ProtocolRun":
        """A run with a protocol's own defaults, which say whether it takes the options of `SteeringOptions`.

        Raises:
            DataError: an option that the protocol does not have, or one out of range.
        """
        kind = SteeringOptions if "scope" in defaults else ProtocolOptions
        known = kind.__annotations__
        if unknown := [name for name in options if name not in known]:
            listed = f"beside its own it has {', '.join(sorted(known))}"
            raise DataError(unknown_keyword(protocol, unknown[0], known, listed))
        return cls(protocol=protocol, **{**defaults, **options})

    def __post_init__(self) -> None:
        check_intervals(self.level, self.seed)
        limit_of(self.batch_size)
        checked_chat(self.chat)
        if self.limit is not None:
            object.__setattr__(self, "limit", positive_int("limit", self.limit, hint="None takes all items"))
        if isinstance(self.controls, Mapping):
            if taken := {STEERED, UNSTEERED} & set(map(str, self.controls)):
                raise DataError(
                    f"A control cannot be named {taken.pop()!r}, which is the name of a condition; choose another."
                )
        else:
            hint = "a mapping of names to vectors is taken too"
            object.__setattr__(self, "controls", integer("controls", self.controls, 0, hint=hint))

    def select_items(self, items: Sequence[T]) -> tuple[list[T], list[int]]:
        """The items to run, in their order, and the unit of each: its group, or itself.

        That is all items that differ, or as many of these as `limit` says.
        """
        return self.select_items_by_kind({"items": items})["items"]

    def select_items_by_kind(self, items: Mapping[str, Sequence[T]]) -> dict[str, tuple[list[T], list[int]]]:
        """The same of items of several kinds, each of which `limit` counts for itself."""
        units = number_groups_by_kind(self.groups, {kind: len(each) for kind, each in items.items()})
        places = {kind: self._places(each) for kind, each in items.items()}
        return {
            kind: ([items[kind][i] for i in which], [units[kind][i] for i in which]) for kind, which in places.items()
        }

    def _places(self, items: Sequence[Any]) -> list[int]:
        # The same item twice is one observation: its copies would make intervals narrow for nothing.
        first: dict[str, int] = {}
        distinct = list(dict.fromkeys(first.setdefault(repr(item), i) for i, item in enumerate(items)))
        if self.limit is None or self.limit >= len(distinct):
            return distinct
        chosen = np.random.default_rng(self.seed).choice(len(distinct), self.limit, replace=False)
        return [distinct[i] for i in sorted(chosen)]

    @property
    def draws(self) -> list[str]:
        """The conditions that are random vectors."""
        return [] if isinstance(self.controls, Mapping) else [f"{RANDOM} {i + 1}" for i in range(self.controls)]

    def vectors(self, model: Any, vec: Any) -> dict[str, SteeringVector]:
        """The vector and its controls, by condition; where they were made has been compared with the model."""
        identity = ModelIdentity(model)

        def prepare(given: Any, what: str) -> SteeringVector:
            vector = as_vector(given, what)
            return check_vector(vector, identity) if "model" in vector.metadata else vector

        vec = prepare(vec, self.protocol)
        if isinstance(self.controls, Mapping):
            return {STEERED: vec, **{str(n): prepare(each, f"controls[{n!r}]") for n, each in self.controls.items()}}
        return {STEERED: vec, **{name: random_vector(vec, self.seed + i) for i, name in enumerate(self.draws)}}

    def strengths(self, model: Any, vec: Any, alphas: Sequence[float]) -> dict[str, list[Operator | None]]:
        """The operators of the vector and of each control, one for each strength; None is the unsteered model."""
        vectors = self.vectors(model, vec)
        model_layout = layout(unwrap_model(model))
        pairs = configs_of(model_layout, vectors, alphas, None, self.scope, self.make)
        by_name: dict[str, list[Operator | None]] = {name: [] for name in vectors}
        for config, op in pairs:
            by_name[config.vector].append(op)
        return by_name

    def conditions(self, model: Any, vec: Any, alpha: float) -> dict[str, Operator | None]:
        """The operators to compare: the vector's, none, and those of the controls."""
        steered, *controls = self.strengths(model, vec, [finite_number("alpha", alpha)]).items()
        return {STEERED: steered[1][0], UNSTEERED: None, **{name: ops[0] for name, ops in controls}}

    def log_probs(self, model: Any, items: Sequence[Item], ops: Sequence[Operator | None]) -> list[np.ndarray]:
        """For each item the log-probabilities `[operators, continuations]`; equal operators run once."""
        distinct = list(dict.fromkeys(ops))
        scorer = Scorer(model, items, distinct, batch_size=self.batch_size)
        log_probs: dict[int, np.ndarray] = {}
        with progress_bar("Scoring", "item", self.progress, total=len(items)) as bar:
            for part in scorer.run():
                log_probs |= dict(zip(part.items, part.log_probs, strict=True))
                bar.update(len(part.items))
        warn_of_empty(scorer.selections)
        which = [distinct.index(op) for op in ops]
        return [log_probs[i][which] for i in range(len(items))]

    def decoding(
        self, model: Any, tokenizer: Any, max_new_tokens: int, generation: Mapping[str, Any] | None
    ) -> Decoding:
        """How texts are generated: made before anything else runs, so that wrong options fail at once."""
        return decoding_of(
            self.protocol,
            model,
            tokenizer,
            generation or {},
            chat=self.chat,
            max_new_tokens=max_new_tokens,
            seed=seed_of_rows(self.seed),
            batch_size=limit_of(self.batch_size),
        )

    def texts(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        ops: Sequence[Operator | None],
        decoding: Decoding,
    ) -> list[list[str]]:
        """Generate from each prompt (its token ids) under each operator, with common random numbers."""
        distinct = list(dict.fromkeys(ops))
        todo = [(c, p) for c in range(len(distinct)) for p in range(len(prompts))]
        texts: dict[tuple[int, int], str] = {}
        with progress_bar("Generating", "text", self.progress, total=len(todo)) as bar:
            for part in generate_many(model, tokenizer, prompts, distinct, todo, decoding):
                texts |= part
                bar.update(len(part))
        return [[texts[distinct.index(op), p] for p in range(len(prompts))] for op in ops]

    def chat_with(self, tokenizer: Any) -> Chat:
        """The run's `chat`; where that is None, whether there is a chat template."""
        return bool(getattr(tokenizer, "chat_template", None)) if self.chat is None else self.chat

    def outcome(self, source: str, values: Values, **parts: Any) -> Outcome:
        """The outcome of this run; see `_tally.outcome`, which has the other arguments."""
        options = {"draws": self.draws, "level": self.level, "seed": self.seed}
        return outcome(self.protocol, source, values, **parts, **options)

    def about(self, model: Any, ops: Sequence[Operator | None], data: Any, **more: Any) -> dict[str, Any]:
        """The provenance of an outcome: options, versions, hashes of operators and items (a list, or lists by name)."""
        options = {
            "controls": self.controls if isinstance(self.controls, int) else list(map(str, self.controls)),
            **{name: getattr(self, name) for name in ("limit", "seed", "chat", "level")},
            "groups_sha256": None if self.groups is None else json_sha256(self.groups),
        }
        counts = {name: len(each) for name, each in data.items()} if isinstance(data, Mapping) else len(data)
        return run_provenance(
            unwrap_model(model), ops, {**options, **more, "items": counts, "data_sha256": json_sha256(data)}
        )
