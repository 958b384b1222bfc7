"""The result of a protocol: named figures with intervals, beside those of the unsteered model and of controls."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.evaluate._against_random import FEWEST_DRAWS
from steerfn.evaluate._common import ENOUGH
from steerfn.evaluate._pairs import UNSTEERED, holm_by_kind
from steerfn.evaluate._sign_flip import least_p
from steerfn.evaluate._statistics import RESAMPLES, Difference, Estimate
from steerfn.output import (
    Bullets,
    Paragraph,
    Result,
    Section,
    Table,
    format_number,
    format_p,
    format_signed,
    percent,
)
from steerfn.values import DataError

STEERED, RANDOM = "steered", "random"
"""The names of the steered condition, and of random vectors of the vector's norm, which are one control together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome(Result):
    """The outcome of a protocol; see `benchmark`. Print it.

    Attributes:
        protocol: its name.
        source: the paper that it is from.
        figures: the steered model's numbers by name, each with its interval.
        baseline: the unsteered model's, where that means something.
        controls: the same numbers of every control by its name: of "random", the mean of random vectors of the same
            norm, or of vectors of the caller's own.
        effects: by what the steered model is compared with ("unsteered" or a control) and by figure, the difference
            paired over items, steered minus other. Against "random" by the rule of `compare_vectors`: p and interval
            know that random vectors differ among themselves.
        draws: how many random vectors "random" is the mean of.
        records: one for each item and condition.
        notes: what a reader has to know to read the numbers.
        about: what was run: options, versions, seeds, hashes of the model, the operators and the data.
    """

    protocol: str
    source: str
    figures: Mapping[str, Estimate]
    baseline: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    controls: Mapping[str, Mapping[str, Estimate]] = dataclasses.field(default_factory=dict)
    effects: Mapping[str, Mapping[str, Difference]] = dataclasses.field(default_factory=dict)
    draws: int = 0
    records: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    _what = "The outcome"

    @property
    def adjusted(self) -> dict[tuple[str, str], float]:
        """The p-value of every effect after Holm's correction, by (what it is against, figure).

        Differences from the unsteered model, from random vectors, and from controls of one's own are corrected among
        themselves. Against random vectors the p-value is that of a claim of an effect, which needs both comparisons: it
        is not below that of the same figure against the unsteered model.
        """
        pairs = [(against, name) for against, of in self.effects.items() for name in of]
        plain = self.effects.get(UNSTEERED, {})
        claims = [
            max(self.effects[against][name].p, plain[name].p if against == RANDOM and name in plain else 0.0)
            for against, name in pairs
        ]
        kinds = [against if against in (UNSTEERED, RANDOM) else "control" for against, _ in pairs]
        return dict(zip(pairs, holm_by_kind(claims, kinds)[0], strict=True))

    def is_shown(self, figure: str, against: str = UNSTEERED) -> bool:
        """Whether the data can carry a difference.

        Its interval excludes 0, its p after Holm's correction is below 1 - level, four of five items have a number
        under both, and against "random" there are five random vectors or more: fewer do not show what others do. An
        effect of the vector is a difference from the unsteered model and, the same way, from random vectors; that
        against "random" asks for both.

        Args:
            figure: the name of a figure that is compared.
            against: "unsteered", or the name of a control.

        Raises:
            DataError: there is no such difference.
        """
        if figure not in self.effects.get(against, {}):
            known = ", ".join(
                f"{name} against {other}" for other, estimate in self.effects.items() for name in estimate
            )
            raise DataError(f"{self.protocol} compares no {figure!r} against {against!r}; it has {known or 'none'}.")
        effect = self.effects[against][figure]
        estimate = effect.estimate
        if self._is_sparse(effect) or self._lacks_draws(against):
            return False
        plain = self.effects.get(UNSTEERED, {}).get(figure)
        if against == RANDOM and plain is not None and plain.estimate.mean * estimate.mean <= 0:
            return False  # random vectors do more
        return (estimate.low > 0 or estimate.high < 0) and self.adjusted[against, figure] < 1 - estimate.level

    def _lacks_draws(self, against: str) -> bool:
        return against == RANDOM and 0 < self.draws < FEWEST_DRAWS

    def _is_sparse(self, effect: Difference) -> bool:
        return effect.n < ENOUGH * (effect.n + effect.left_out)

    def __repr__(self) -> str:
        return (
            f"Outcome({self.protocol!r}, {', '.join(f'{k} {format_number(v.mean)}' for k, v in self.figures.items())})"
        )

    def _heading(self) -> str:
        return f"{self.protocol} ({self.source})"

    def _sections(self) -> Sequence[Section]:
        sections: list[Section] = [self._table()]
        if effects := self._sentences():
            sections.append(Bullets(effects, self._of_effects(), "  "))
        if self.notes:
            sections.append(Bullets(self.notes, "Notes", "  - "))
        return sections

    def _print_sections(self) -> Sequence[Section]:
        return [Paragraph(self._heading()), *self._sections()]

    def _table(self) -> Table:
        """The figures: one line for each, one column for each condition that has any."""
        columns = {STEERED: self.figures, UNSTEERED: self.baseline, **self.controls}
        columns = {name: column for name, column in columns.items() if column}
        names = dict.fromkeys(name for column in columns.values() for name in column)
        rows = [[name, *(_cell(column.get(name)) for column in columns.values()), self._count(name)] for name in names]
        return Table(["figure", *columns, "n"], rows, numeric=range(1, len(columns) + 2))

    def _count(self, figure: str) -> str:
        conditions = (self.figures, self.baseline, *self.controls.values())
        return str(next(each[figure].n for each in conditions if figure in each))

    def _of_effects(self) -> str:
        if not self.adjusted:
            return ""
        level = next(each.estimate.level for of in self.effects.values() for each in of.values())
        beside = f"; against {self.draws} random vectors the p of an effect, which stands against both"
        return (
            f"Differences, steered minus other, paired over items ({percent(level)} intervals, p after Holm"
            f"{beside if RANDOM in self.effects and self.draws >= FEWEST_DRAWS else ''})"
        )

    def _sentences(self) -> list[str]:
        adjusted = self.adjusted
        lines = []
        for against, effects in self.effects.items():
            for name, effect in effects.items():
                value = effect.estimate
                numbers = f"{format_signed(value.mean)} [{format_number(value.low)}, {format_number(value.high)}]"
                verdict = "" if self.is_shown(name, against) else f": {self._why_not(effect, against)}"
                lines.append(
                    f"{name} against {against}: {numbers}, {format_p(adjusted[against, name])}, n = {effect.n}{verdict}"
                )
        return lines

    def _why_not(self, effect: Difference, against: str) -> str:
        """Why a difference is not shown: the test could not have shown any, or it found none."""
        if self._lacks_draws(against):
            return "fewer than five random vectors do not show what others do; pass controls=5 or more"
        if self._is_sparse(effect):
            return f"{effect.left_out} of {effect.n + effect.left_out} items have no number, so nothing is said"
        family = sum(kind == against for kind, _ in self.adjusted)
        if least_p(effect.n, RESAMPLES) * family >= 1 - effect.estimate.level:
            return f"{effect.n} items are too few to show any difference"
        return "no difference could be shown"

    def to_records(self) -> list[dict[str, Any]]:
        """The `records`."""
        return list(self.records)

    def _facts(self) -> dict[str, Any]:
        adjusted = self.adjusted
        effects = {
            against: {
                name: {
                    **dataclasses.asdict(effect),
                    "p_holm": adjusted[against, name],
                    "shown": self.is_shown(name, against),
                }
                for name, effect in of.items()
            }
            for against, of in self.effects.items()
        }
        return {
            "protocol": self.protocol,
            "source": self.source,
            "figures": self.figures,
            "baseline": self.baseline,
            "controls": self.controls,
            "effects": effects,
            "random_vectors": self.draws,
            "notes": self.notes,
            "about": self.about,
        }


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    ends = f" [{format_number(estimate.low)}, {format_number(estimate.high)}]"
    return format_number(estimate.mean) + ("" if math.isnan(estimate.low) else ends)
