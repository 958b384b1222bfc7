"""What a protocol found: named numbers with their intervals, beside the unsteered model's and those of controls."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn._dataframe import dataframe
from steerfn._errors import DataError
from steerfn._page import part, table
from steerfn._records import as_json, write_text
from steerfn.evaluate._against_random import FEWEST_DRAWS
from steerfn.evaluate._pairs import UNSTEERED, holm_by_kind
from steerfn.evaluate._shown import percent, shown, shown_p
from steerfn.evaluate._sign_flip import least_p
from steerfn.evaluate._statistics import RESAMPLES, Difference, Estimate
from steerfn.sweeping._common import ENOUGH

STEERED, RANDOM = "steered", "random"
"""The names of the steered condition, and of random vectors of the vector's norm, which are one control together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a protocol; print it.

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

    Example:
        >>> import steerfn as sf
        >>> print(sf.benchmark("caa", model, tokenizer, v, "myopic-reward.json", alpha=2.0))  # doctest: +SKIP
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
            known = ", ".join(f"{name} against {other}" for other, found in self.effects.items() for name in found)
            raise DataError(f"{self.protocol} compares no {figure!r} against {against!r}; it has {known or 'none'}.")
        effect = self.effects[against][figure]
        found = effect.estimate
        if self._is_sparse(effect) or self._lacks_draws(against):
            return False
        plain = self.effects.get(UNSTEERED, {}).get(figure)
        if against == RANDOM and plain is not None and plain.estimate.mean * found.mean <= 0:
            return False  # random vectors do more
        return (found.low > 0 or found.high < 0) and self.adjusted[against, figure] < 1 - found.level

    def _lacks_draws(self, against: str) -> bool:
        return against == RANDOM and 0 < self.draws < FEWEST_DRAWS

    def _is_sparse(self, effect: Difference) -> bool:
        return effect.n < ENOUGH * (effect.n + effect.left_out)

    def __str__(self) -> str:
        headers, rows = self._rows()
        wide = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
        lines = [f"{self.protocol} ({self.source})", ""]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip()
            for row in [headers, *rows]
        ]
        if effects := self._sentences():
            lines += ["", self._heading(), *(f"  {sentence}" for sentence in effects)]
        if self.notes:
            lines += ["", "Notes", *(f"  - {note}" for note in self.notes)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Outcome({self.protocol!r}, {', '.join(f'{k} {shown(v.mean)}' for k, v in self.figures.items())})"

    def _repr_html_(self) -> str:
        headers, rows = self._rows()
        body = table([f"{self.protocol}", *headers[1:]], rows)
        listed = [*self._sentences(), *(f"Note: {note}" for note in self.notes)]
        return part(body + (table([self._heading() or "Notes"], [[each] for each in listed]) if listed else ""))

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        """The table of figures: one line for each, one column for each condition that has any."""
        columns = {STEERED: self.figures, UNSTEERED: self.baseline, **self.controls}
        columns = {name: found for name, found in columns.items() if found}
        names = dict.fromkeys(name for found in columns.values() for name in found)
        rows = [[name, *(_cell(found.get(name)) for found in columns.values()), self._count(name)] for name in names]
        return ["figure", *columns, "n"], rows

    def _count(self, figure: str) -> str:
        found = (condition.get(figure) for condition in (self.figures, self.baseline, *self.controls.values()))
        return str(next(each.n for each in found if each is not None))

    def _heading(self) -> str:
        if not self.adjusted:
            return ""
        level = next(each.estimate.level for found in self.effects.values() for each in found.values())
        beside = f"; against {self.draws} random vectors the p of an effect, which stands against both"
        return (
            f"Differences, steered minus other, paired over items ({percent(level)} intervals, p after Holm"
            f"{beside if RANDOM in self.effects and self.draws >= FEWEST_DRAWS else ''})"
        )

    def _sentences(self) -> list[str]:
        adjusted = self.adjusted
        found = []
        for against, effects in self.effects.items():
            for name, effect in effects.items():
                value = effect.estimate
                numbers = f"{_signed(value.mean)} [{shown(value.low)}, {shown(value.high)}]"
                verdict = "" if self.is_shown(name, against) else f": {self._why_not(effect, against)}"
                found.append(
                    f"{name} against {against}: {numbers}, {shown_p(adjusted[against, name])}, n = {effect.n}{verdict}"
                )
        return found

    def _why_not(self, effect: Difference, against: str) -> str:
        """What it means that a difference is not shown: nothing at all, where it could not have been."""
        if self._lacks_draws(against):
            return "fewer than five random vectors do not show what others do; pass controls=5 or more"
        if self._is_sparse(effect):
            return f"{effect.left_out} of {effect.n + effect.left_out} items have no number, so nothing is said"
        family = sum(kind == against for kind, _ in self.adjusted)
        if least_p(effect.n, RESAMPLES) * family >= 1 - effect.estimate.level:
            return f"{effect.n} items are too few to show any difference"
        return "no difference could be shown"

    def to_markdown(self, path: Any = None) -> str:
        """The table, the differences and the notes as Markdown; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        headers, rows = self._rows()
        lines = [f"**{self.protocol}** ({self.source})", "", _line(headers), _line(["---"] * len(headers))]
        lines += [_line(row) for row in rows]
        if effects := self._sentences():
            lines += ["", f"{self._heading()}:", "", *(f"- {sentence}" for sentence in effects)]
        if self.notes:
            lines += ["", "Notes:", "", *(f"- {note}" for note in self.notes)]
        text = "\n".join(lines) + "\n"
        if path is not None:
            write_text(path, text, "The outcome")
        return text

    def to_json(self, path: Any = None) -> str:
        """All of it as JSON, NaN as null; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        adjusted = self.adjusted
        effects = {
            against: {
                name: {
                    **dataclasses.asdict(effect),
                    "p_holm": adjusted[against, name],
                    "shown": self.is_shown(name, against),
                }
                for name, effect in found.items()
            }
            for against, found in self.effects.items()
        }
        document = {
            "protocol": self.protocol,
            "source": self.source,
            "figures": self.figures,
            "baseline": self.baseline,
            "controls": self.controls,
            "effects": effects,
            "random_vectors": self.draws,
            "notes": self.notes,
            "about": self.about,
            "records": self.records,
        }
        text = as_json(document)
        if path is not None:
            write_text(path, text, "The outcome")
        return text

    def to_pandas(self) -> Any:
        """The records as a pandas DataFrame.

        Raises:
            DataError: pandas is not installed.
        """
        return dataframe(self.records)


def _cell(found: Estimate | None) -> str:
    if found is None:
        return "-"
    if found.low != found.low:
        return shown(found.mean)
    return f"{shown(found.mean)} [{shown(found.low)}, {shown(found.high)}]"


def _signed(value: float) -> str:
    text = shown(value)
    return f"+{text}" if value > 0 and text != "0" else text


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
