"""How a protocol is run: the options that all take, the conditions that are compared, and how they are carried out."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import numpy as np

from steerfn._about import about_of
from steerfn._blocks import unwrapped
from steerfn._chat_template import Chat, checked_chat
from steerfn._decoding import decoding_of
from steerfn._errors import DataError
from steerfn._groups import number_groups
from steerfn._keywords import hf_keywords
from steerfn._layout import layout
from steerfn._steer import warn_of_empty
from steerfn._text import Text
from steerfn._vector import SteeringVector
from steerfn.discover import random_vector
from steerfn.evaluate._against_random import FEWEST_DRAWS
from steerfn.evaluate._outcome import RANDOM, STEERED
from steerfn.evaluate._pairs import UNSTEERED
from steerfn.evaluate._seeds import seed_of_rows
from steerfn.evaluate._statistics import checked_options
from steerfn.operators import Operator, Scope, add
from steerfn.operators._base import as_vector
from steerfn.reading._budget import limit_of
from steerfn.scoring import Item, Scorer
from steerfn.sweeping._configs import Make, configs_of
from steerfn.sweeping._generated import generated

T = TypeVar("T")


class Options(TypedDict, total=False):
    """What every protocol takes.

    Attributes:
        controls: how many random vectors of the same norm are run beside the vector (default 5; fewer carry no claim),
            or a mapping of names to control vectors of your own, such as one found with shuffled labels.
        limit: how many items to take, drawn with `seed`; None (default) takes all. The same item twice counts once.
        seed: of the drawn items, the random vectors, sampling, and the intervals.
        chat: True puts prompts into the chat template; None does so where there is one; False takes them as they are.
        batch_size: rows at once; "auto" fits them to the device.
        level: of the intervals. Default 0.95.
        progress: show progress bars on stderr.
    """

    controls: int | Mapping[str, SteeringVector]
    limit: int | None
    seed: int
    chat: Chat
    batch_size: int | str
    level: float
    progress: bool


class Steering(Options, total=False):
    """What protocols take that let the caller say how the vector steers.

    Attributes:
        scope: the tokens to steer, as in `at`; None is all of them.
        operator: how a vector and a strength become an operator: `sf.add` (default), `sf.rotate`, a function.
    """

    scope: Scope | None
    operator: Make


class Grouped(Steering, total=False):
    """What protocols take whose items may belong together.

    Attributes:
        groups: a label for each item of the data, where several belong together (the answers of one question): their
            mean is one unit, so that signs are flipped, and units resampled, by group.
    """

    groups: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a protocol: its name and the options, checked.

    Attributes:
        protocol: its name, for errors.
    """

    protocol: str
    scope: Scope | None = None
    operator: Make = add
    controls: int | Mapping[str, SteeringVector] = FEWEST_DRAWS
    limit: int | None = None
    seed: int = 0
    chat: Chat = None
    batch_size: int | str = "auto"
    level: float = 0.95
    progress: bool = True
    groups: Any = None

    @classmethod
    def of(cls, protocol: str, options: Mapping[str, Any], **defaults: Any) -> "Run":
        """A run with a protocol's own defaults, which say whether it takes the options of `Steering` or of `Grouped`.

        Raises:
            DataError: an option that the protocol does not have, or one out of range.
        """
        kind = Grouped if "groups" in defaults else Steering if "scope" in defaults else Options
        known = kind.__annotations__
        if unknown := [name for name in options if name not in known]:
            near = difflib.get_close_matches(unknown[0], known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise DataError(
                f"{protocol} has no option {unknown[0]!r}{hint}; beside its own it has {', '.join(sorted(known))}."
            )
        return cls(protocol=protocol, **{**defaults, **options})

    def __post_init__(self) -> None:
        checked_options(self.level, self.seed)
        limit_of(self.batch_size, "rows")
        checked_chat(self.chat)
        if self.limit is not None and (
            isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1
        ):
            raise DataError(f"limit is a number of items from 1, or None for all, not {self.limit!r}.")
        if isinstance(self.controls, Mapping):
            if taken := {STEERED, UNSTEERED} & set(map(str, self.controls)):
                raise DataError(f"A control cannot be named {taken.pop()!r}, which is a condition; name it otherwise.")
        elif isinstance(self.controls, bool) or not isinstance(self.controls, int) or self.controls < 0:
            raise DataError(
                f"controls is a number of random vectors, or a mapping of names to vectors, not {self.controls!r:.80}."
            )

    def chosen(self, items: Sequence[T]) -> list[T]:
        """The items to run, in their order: all that differ, or as many of these as `limit` says."""
        return [items[i] for i in self._places(items)]

    def grouped(self, items: Sequence[T]) -> tuple[list[T], list[int]]:
        """The same with the unit of each, from 0: its group, or itself."""
        places = self._places(items)
        labels = range(len(items)) if self.groups is None else number_groups(self.groups, len(items), "items")
        kept = list(dict.fromkeys(labels[i] for i in places))
        return [items[i] for i in places], [kept.index(labels[i]) for i in places]

    def _places(self, items: Sequence[Any]) -> list[int]:
        # The same item twice is one observation: its copies would make intervals narrow for nothing.
        first: dict[str, int] = {}
        distinct = list(dict.fromkeys(first.setdefault(repr(item), i) for i, item in enumerate(items)))
        if self.limit is None or self.limit >= len(distinct):
            return distinct
        kept = np.random.default_rng(self.seed).choice(len(distinct), self.limit, replace=False)
        return [distinct[i] for i in sorted(kept)]

    @property
    def draws(self) -> list[str]:
        """The conditions that are random vectors."""
        return [] if isinstance(self.controls, Mapping) else [f"{RANDOM} {i + 1}" for i in range(self.controls)]

    def vectors(self, vec: Any) -> dict[str, SteeringVector]:
        """The vector and its controls, by condition."""
        vec = as_vector(vec, self.protocol)
        if isinstance(self.controls, Mapping):
            controls = {str(name): as_vector(each, f"controls[{name!r}]") for name, each in self.controls.items()}
            return {STEERED: vec, **controls}
        return {STEERED: vec, **{name: random_vector(vec, self.seed + i) for i, name in enumerate(self.draws)}}

    def strengths(self, model: Any, vec: Any, alphas: Sequence[float]) -> dict[str, list[Operator | None]]:
        """The operators of the vector and of each control, one for each strength; None is the unsteered model."""
        vectors = self.vectors(vec)
        found = layout(unwrapped(model))
        pairs = configs_of(found, vectors, alphas, None, self.scope, self.operator)
        by_name: dict[str, list[Operator | None]] = {name: [] for name in vectors}
        for config, op in pairs:
            by_name[config.vector].append(op)
        return by_name

    def conditions(self, model: Any, vec: Any, alpha: float) -> dict[str, Operator | None]:
        """The operators to compare: the vector's, none, and those of the controls."""
        steered, *controls = self.strengths(model, vec, [alpha]).items()
        return {STEERED: steered[1][0], UNSTEERED: None, **{name: ops[0] for name, ops in controls}}

    def log_probs(self, model: Any, items: Sequence[Item], ops: Sequence[Operator | None]) -> list[np.ndarray]:
        """For each item the log-probabilities `[operators, continuations]`; equal operators run once."""
        from tqdm import tqdm

        distinct = list(dict.fromkeys(ops))
        scorer = Scorer(model, items, distinct, batch_size=self.batch_size)
        found: dict[int, np.ndarray] = {}
        with tqdm(total=len(items), desc="Scoring", unit="item", disable=not self.progress, leave=False) as bar:
            for part in scorer.run():
                found |= dict(zip(part.items, part.log_probs, strict=True))
                bar.update(len(part.items))
        warn_of_empty(scorer.selections)
        which = [distinct.index(op) for op in ops]
        return [found[i][which] for i in range(len(items))]

    def texts(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[Text],
        ops: Sequence[Operator | None],
        max_new_tokens: int,
        generation: Mapping[str, Any] | None,
    ) -> list[list[str]]:
        """What is generated under each operator from each prompt, with common random numbers."""
        from tqdm import tqdm

        chat, hf = hf_keywords(self.protocol, model, tokenizer, self.chat, generation or {})
        distinct = list(dict.fromkeys(ops))
        todo = [(c, p) for c in range(len(distinct)) for p in range(len(prompts))]
        found: dict[tuple[int, int], str] = {}
        with tqdm(total=len(todo), desc="Generating", unit="text", disable=not self.progress, leave=False) as bar:
            for part in generated(
                model,
                tokenizer,
                prompts,
                distinct,
                todo,
                limit=limit_of(self.batch_size, "rows"),
                max_new_tokens=max_new_tokens,
                seed=seed_of_rows(self.seed),
                chat=chat,
                hf=hf,
            ):
                found |= part
                bar.update(len(part))
        return [[found[distinct.index(op), p] for p in range(len(prompts))] for op in ops]

    def about(self, model: Any, ops: Sequence[Operator | None], data: Any, **more: Any) -> dict[str, Any]:
        """What determines the outcome: options, versions, hashes of operators and items (a list, or lists by name)."""
        options = {
            "controls": self.controls if isinstance(self.controls, int) else list(map(str, self.controls)),
            **{name: getattr(self, name) for name in ("limit", "seed", "chat", "level")},
        }
        if "generation" in more:
            more["decoding"] = decoding_of(model, None, more["generation"] or {}).name
        text = json.dumps(data, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        counts = {name: len(each) for name, each in data.items()} if isinstance(data, Mapping) else len(data)
        return about_of(unwrapped(model), ops, {**options, **more, "items": counts, "data_sha256": digest})
