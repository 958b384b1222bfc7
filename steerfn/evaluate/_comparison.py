"""What a comparison with and without steering found: the texts, their numbers, and what can be said of them."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from steerfn._dataframe import dataframe
from steerfn._errors import DataError
from steerfn._page import page, part
from steerfn._records import as_json, write_text
from steerfn._text import Text
from steerfn._visible import visible, visible_line
from steerfn.evaluate._comparison_html import STYLE, body
from steerfn.evaluate._comparison_table import effects_table, narrow
from steerfn.evaluate._diff import runs
from steerfn.evaluate._pairs import Pair
from steerfn.evaluate._sentences import sentences
from steerfn.evaluate._side_by_side import (
    columns,
    in_colour,
    printable,
    shown_prompt,
    side_by_side,
    terminal_width,
)
from steerfn.evaluate._statistics import Estimate
from steerfn.evaluate._vector_tables import as_markdown, as_text, escaped
from steerfn.metrics._metric import Metric

STEERING = "steering"
"""What sentences call the steered model."""
SHOWN = 8
"""Rows of texts that printing shows."""
IN_NOTEBOOK = 20
"""Rows of texts that a notebook shows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The outcome of `compare`. Print it, call `.show()`, or let a notebook display it.

    Texts and values are in the order of seeds, then prompts: `[seeds * prompts]`, prompts fastest.

    Attributes:
        prompts: the prompts as given.
        seeds: the seeds of generation.
        before: the unsteered texts.
        after: the steered ones.
        values: by metric, a number for every text before and after. Where texts after are compared with those before
            (bleu, ...), there are none before.
        means: by metric, the means over different prompts before and after, with their intervals.
        pairs: by metric what steering did: difference, interval, test; see `Pair`. Metrics that compare with the text
            before have none.
        metrics: the metrics by name.
        about: what was run: options, versions, hashes.
    """

    prompts: tuple[Text, ...]
    seeds: tuple[int, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    values: Mapping[str, tuple[np.ndarray | None, np.ndarray]]
    means: Mapping[str, tuple[Estimate | None, Estimate]]
    pairs: tuple[Pair, ...]
    metrics: Mapping[str, Metric]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.before)

    @property
    def changed(self) -> int:
        """How many texts steering changed."""
        return sum(before != after for before, after in zip(self.before, self.after, strict=True))

    def summary(self) -> str:
        """What steering did, a sentence for each metric.

        A change is called one only where the p-value after Holm's correction over the metrics is below 1 - level, the
        interval excludes 0, and there are prompts enough to carry that.
        """
        # A range, such as "0 to 100", is not what numbers are counted in.
        units = {name: each.unit if each.unit[:1].isalpha() else "" for name, each in self.metrics.items()}
        tested = sentences(self.pairs, units)
        said = [f"Steering changed {self.changed} of {_counted(len(self), 'text')}."]
        said += [
            line.replace(STEERING, STEERING.capitalize(), 1) if line.startswith(STEERING) else line for line in tested
        ]
        for name, (before, after) in self.means.items():
            if before is None:
                found = after if after.n else "no number"
                said.append(f"{name} of the steered texts against the unsteered ones: {found}.")
        if any(pair.significant for pair in self.pairs):
            said.append("Whether a random push would do the same is not known from this: sf.compare_vectors asks it.")
        return "\n".join(said)

    def show(self, max_rows: int | None = SHOWN, *, width: int | None = None, colour: bool | None = None) -> None:
        """Print the texts side by side with their differences marked, the metrics, and the summary.

        Args:
            max_rows: texts to show; None shows all.
            width: columns, from 60; by default those of the terminal.
            colour: mark differences by colours instead of signs; by default where stdout is a terminal and the
                environment variable NO_COLOR is not set.

        Raises:
            DataError: a number of rows below 0.

        Example:
            >>> found.show(max_rows=3)  # doctest: +SKIP
        """
        print(printable(self._text(max_rows, width, in_colour() if colour is None else colour)))

    def records(self) -> list[dict[str, Any]]:
        """One record for every prompt and seed: both texts, and each metric before and after."""
        found = []
        for i, (prompt, seed, before, after) in enumerate(self._rows()):
            row = {
                "prompt": prompt if isinstance(prompt, str) else json.dumps(list(prompt)),
                "seed": seed,
                "before": before,
                "after": after,
            }
            for name, (first, second) in self.values.items():
                if first is not None:
                    row[f"{name} before"] = float(first[i])
                row[f"{name} after"] = float(second[i])
            found.append(row)
        return found

    def to_pandas(self) -> Any:
        """The records as a pandas DataFrame.

        Raises:
            DataError: pandas is not installed.
        """
        return dataframe(self.records())

    def to_json(self, path: Any = None) -> str:
        """Everything as JSON, with what is needed to repeat it; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        means = {name: {"before": before, "after": after} for name, (before, after) in self.means.items()}
        document = {
            "about": self.about,
            "means": means,
            "effects": [pair.to_dict() for pair in self.pairs],
            "summary": self.summary().splitlines(),
            "records": self.records(),
        }
        return self._written(as_json(document), path)

    def to_markdown(self, path: Any = None) -> str:
        """Metrics, summary and all texts as markdown; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        said = "\n".join(f"- {escaped(line)}" for line in self.summary().splitlines())
        lines = ["| prompt | unsteered | steered |", "|---|---|---|"]
        for heading, before, after in self._headed():
            cells = (" ".join(map(_bold, each)) for each in runs(visible(before), visible(after)))
            lines.append(f"| {escaped(visible(heading))} | {' | '.join(' '.join(cell.split()) for cell in cells)} |")
        parts = ["# With and without steering", escaped(self._head()), as_markdown(self._table()), said]
        return self._written("\n\n".join([*parts, "\n".join(lines)]) + "\n", path)

    def to_html(self, path: Any = None) -> str:
        """Everything as one self-contained HTML page without scripts; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        return self._written(page("With and without steering", self._body(None), style=STYLE), path)

    def _repr_html_(self) -> str:
        return part(self._body(IN_NOTEBOOK), style=STYLE)

    def __str__(self) -> str:
        """As `show` prints it, without colours, whatever it is printed to."""
        return self._text(SHOWN, None, False)

    def __repr__(self) -> str:
        return f"Comparison({len(self.prompts)} prompts, {len(self)} texts each way, metrics {list(self.metrics)})"

    def _text(self, max_rows: int | None, width: int | None, colour: bool) -> str:
        if max_rows is not None and (isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 0):
            raise DataError(f"max_rows is a number of texts to show, from 0, or None for all, not {max_rows!r}.")
        width = terminal_width() if width is None else width
        rows = self._headed()[:max_rows]
        texts = side_by_side(rows, ("unsteered", "steered"), width=width, colour=colour)
        if left := len(self) - len(rows):
            texts += ["", f"... and {left} more"]
        numbers = as_text(self._table())
        if max(map(columns, numbers.splitlines())) > width:
            numbers = as_text(narrow(self._table()))
        return "\n\n".join([self._head(), "\n".join(texts), numbers, self.summary()])

    def _rows(self) -> list[tuple[Text, int, str, str]]:
        """Prompt, seed and both texts of every text."""
        whose = [(prompt, seed) for seed in self.seeds for prompt in self.prompts]
        return [(*who, *texts) for who, texts in zip(whose, zip(self.before, self.after, strict=True), strict=True)]

    def _headed(self) -> list[tuple[str, str, str]]:
        """A heading and both texts: the texts of one prompt beside each other."""
        rows, n = self._rows(), len(self.prompts)
        found = []
        for p in range(n):
            for prompt, seed, before, after in rows[p::n]:
                which = f" (seed {seed})" if len(self.seeds) > 1 else ""
                found.append((f"{p + 1}. {shown_prompt(prompt)}{which}", before.strip(), after.strip()))
        return found

    def _head(self) -> str:
        groups = self.about.get("groups")
        units = len(set(groups or map(repr, self.prompts)))
        what = "groups" if groups else "different ones"
        repeated = "" if units == len(self.prompts) else f" ({units} {what}, which are what counts)"
        seeds = f" x {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        steering = visible_line(str(self.about["steering"]))  # a vector's file may call its method anything
        return f"{_counted(len(self.prompts), 'prompt')}{repeated}{seeds}, with and without {steering}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        return effects_table(self.means, {pair.metric: pair for pair in self.pairs}, self.metrics)

    def _body(self, max_rows: int | None) -> str:
        return body(self._head(), self.summary().splitlines(), self._table(), self._headed(), max_rows)

    def _written(self, text: str, path: Any) -> str:
        if path is not None:
            write_text(path, text, "The comparison")
        return text


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _bold(run: tuple[str, bool]) -> str:
    """A piece of a text in markdown, bold where it differs."""
    text, changed = run
    return f"**{escaped(text)}**" if changed else escaped(text)
