"""The result of a comparison with and without steering: the texts, their metrics, and a summary."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from steerfn.evaluate._pairs import Pair
from steerfn.evaluate._sentences import sentences
from steerfn.evaluate._statistics import Estimate
from steerfn.evaluate._tables import describe_prompts, effects_table
from steerfn.metrics import Metric
from steerfn.output import (
    Bullets,
    Paragraph,
    Result,
    Screen,
    Section,
    Table,
    escape_markdown,
    in_colour,
    printable,
    quantity,
    render,
    runs,
    side_by_side,
)
from steerfn.run import Text, prompt_field, shown_prompt
from steerfn.values import integer, visible, visible_line

STEERING = "steering"
"""What sentences call the steered model."""
SHOWN = 8
"""Rows of texts that printing shows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(Result):
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

    _title = "With and without steering"
    _what = "The comparison"

    def __len__(self) -> int:
        return len(self.before)

    @property
    def changed(self) -> int:
        """How many texts steering changed."""
        return sum(before != after for before, after in zip(self.before, self.after, strict=True))

    def summary(self) -> str:
        """The effect of steering, in one sentence for each metric.

        A change is called one only where the p-value after Holm's correction over the metrics is below 1 - level, the
        interval excludes 0, and there are prompts enough to carry that.
        """
        # A range, such as "0 to 100", is not what numbers are counted in.
        units = {name: each.unit if each.unit[:1].isalpha() else "" for name, each in self.metrics.items()}
        tested = sentences(self.pairs, units)
        lines = [f"Steering changed {self.changed} of {quantity(len(self), 'text')}."]
        lines += [
            line.replace(STEERING, STEERING.capitalize(), 1) if line.startswith(STEERING) else line for line in tested
        ]
        for name, (before, after) in self.means.items():
            if before is None:
                lines.append(
                    f"{name} of the steered texts against the unsteered ones: {after if after.n else 'no number'}."
                )
        if any(pair.significant for pair in self.pairs):
            lines.append("Whether a random push would do the same is not known from this: sf.compare_vectors asks it.")
        return "\n".join(lines)

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
            >>> import steerfn as sf
            >>> comparison = sf.compare(model, tokenizer, prompts, v, "length", chat=False, max_new_tokens=2)
            >>> comparison.show(max_rows=1, width=80, colour=False)
            2 prompts, with and without ...
            unsteered                              | steered
            ---------------------------------------+---------------------------------------
            1. My day was
            ...
        """
        if max_rows is not None:
            max_rows = integer("max_rows", max_rows, 0, hint="None shows all texts")
        screen = dataclasses.replace(Screen.of_stdout(max_rows), colour=in_colour() if colour is None else colour)
        if width is not None:
            screen = dataclasses.replace(screen, width=width, wraps=True)
        print(printable(self._text(screen)))

    def to_records(self) -> list[dict[str, Any]]:
        """One record for every prompt and seed: both texts, and each metric before and after."""
        records = []
        for i, (prompt, seed, before, after) in enumerate(self._rows()):
            row = {"prompt": prompt_field(prompt), "seed": seed, "before": before, "after": after}
            for name, (first, second) in self.values.items():
                if first is not None:
                    row[f"{name} before"] = float(first[i])
                row[f"{name} after"] = float(second[i])
            records.append(row)
        return records

    records = to_records  # the older spelling

    def _facts(self) -> dict[str, Any]:
        means = {name: {"before": before, "after": after} for name, (before, after) in self.means.items()}
        effects = [pair.to_dict() for pair in self.pairs]
        return {"about": self.about, "means": means, "effects": effects, "summary": self.summary().splitlines()}

    def _sections(self) -> Sequence[Section]:
        head, texts, _, summary = self._print_sections()
        return [head, summary, self._effects(units_apart=False), texts]

    def _print_sections(self) -> Sequence[Section]:
        texts, summary = SideBySide(self._by_prompt(), "Texts"), Bullets(self.summary().splitlines())
        return [Paragraph(self._head()), texts, self._effects(units_apart=True), summary]  # the last is seen first

    def _effects(self, *, units_apart: bool) -> Table:
        effects = {pair.metric: pair for pair in self.pairs}
        return effects_table(self.means, effects, self.metrics, units_apart=units_apart)

    def _css(self) -> str:
        return render("evaluate/side_by_side.css")

    def __str__(self) -> str:
        """The text that `show` prints, without colours, whatever it is printed to."""
        return self._text(Screen.of_stdout(SHOWN))

    def __repr__(self) -> str:
        return f"Comparison({len(self.prompts)} prompts, {len(self)} texts each way, metrics {list(self.metrics)})"

    def _rows(self) -> list[tuple[Text, int, str, str]]:
        """Prompt, seed and both texts of every text."""
        whose = [(prompt, seed) for seed in self.seeds for prompt in self.prompts]
        return [(*who, *texts) for who, texts in zip(whose, zip(self.before, self.after, strict=True), strict=True)]

    def _by_prompt(self) -> list[tuple[str, str, str]]:
        """A heading and both texts: the texts of one prompt beside each other."""
        rows, n = self._rows(), len(self.prompts)
        headed = []
        for p in range(n):
            for prompt, seed, before, after in rows[p::n]:
                which = f" (seed {seed})" if len(self.seeds) > 1 else ""
                headed.append((f"{p + 1}. {shown_prompt(prompt)}{which}", before.strip(), after.strip()))
        return headed

    def _head(self) -> str:
        groups = self.about.get("groups")
        steering = visible_line(str(self.about["steering"]))  # a vector's file may call its method anything
        texts = describe_prompts(len(self.prompts), groups or map(repr, self.prompts), bool(groups), len(self.seeds))
        return f"{texts}, with and without {steering}"


@dataclasses.dataclass(frozen=True)
class SideBySide(Section):
    """Texts without and with steering beside each other, with what differs marked.

    Attributes:
        rows: a heading and the texts before and after.
        title: what stands above them on a page.
    """

    rows: Sequence[tuple[str, str, str]]
    title: str = ""

    def text(self, screen: Screen) -> str:
        """In two columns."""
        rows = self.rows[: screen.max_rows]
        lines = side_by_side(rows, ("unsteered", "steered"), width=screen.width, colour=screen.colour)
        if left := len(self.rows) - len(rows):
            lines += ["", f"... and {left} more"]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The texts as a Markdown table, with differences in bold."""
        lines = ["| prompt | unsteered | steered |", "|---|---|---|"]
        for heading, before, after in self.rows:
            cells = (" ".join(map(_bold, each)) for each in runs(visible(before), visible(after)))
            lines.append(
                f"| {escape_markdown(visible(heading))} | {' | '.join(' '.join(cell.split()) for cell in cells)} |"
            )
        return "\n".join(lines)

    def html(self, max_rows: int | None = None) -> Markup:
        """The texts as an HTML table; needs side_by_side.css."""
        rows = self.rows[:max_rows]
        left_out = len(self.rows) - len(rows)
        return render("evaluate/side_by_side.html.j2", title=self.title, rows=rows, left_out=left_out)


def _bold(run: tuple[str, bool]) -> str:
    """A piece of a text in markdown, bold where it differs."""
    text, changed = run
    return f"**{escape_markdown(text)}**" if changed else escape_markdown(text)
