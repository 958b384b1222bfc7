"""What a comparison of vectors found: means by condition, tested pairs, sentences, and the texts behind them."""

import dataclasses
import html
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from steerfn._dataframe import dataframe
from steerfn._errors import DataError
from steerfn._page import page, part, table
from steerfn._records import as_json, write_text
from steerfn._text import Text
from steerfn.evaluate._pairs import RANDOM, UNSTEERED, Pair
from steerfn.evaluate._sentences import sentences
from steerfn.evaluate._statistics import Estimate, by_unit
from steerfn.evaluate._vector_tables import as_markdown, as_text, escaped, means_table, pairs_table
from steerfn.metrics._metric import Metric

TITLE = "Comparison of steering vectors"


@dataclasses.dataclass(frozen=True, eq=False)
class VectorComparison:
    """The outcome of `compare_vectors`. Print it to see the means and what was shown.

    Attributes:
        prompts: the prompts as given.
        seeds: the seeds of generation.
        vectors: the names of the vectors.
        texts: by condition ("unsteered", each vector, "random like" each), the texts in the order of slots (of random
            vectors; others have one), then seeds, then prompts: `[slots * seeds * prompts]`, prompts fastest.
        values: by metric and condition, one number for each of those texts. Where unsteered texts are what others
            are compared with (bleu, ...), the unsteered condition has none.
        means: by metric and condition, the mean over different prompts with its interval.
        pairs: every comparison of two conditions in a metric; see `Pair`.
        metrics: the metrics by name.
        unit_of: the unit of each prompt, from 0: equal prompts, or prompts of one group, are one unit.
        slots: which random vector each prompt is continued under, `[slots, prompts]`.
        about: what was run: options, versions, hashes.
    """

    prompts: tuple[Text, ...]
    seeds: tuple[int, ...]
    vectors: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Mapping[str, np.ndarray]]
    means: Mapping[str, Mapping[str, Estimate]]
    pairs: tuple[Pair, ...]
    metrics: Mapping[str, Metric]
    unit_of: tuple[int, ...]
    slots: np.ndarray
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of what was compared: the unsteered model, the vectors, and their random vectors."""
        return tuple(self.texts)

    @property
    def units(self) -> dict[str, str]:
        """The unit of every metric."""
        return {name: metric.unit for name, metric in self.metrics.items()}

    @property
    def blocks(self) -> np.ndarray:
        """The block of each unit: units of one block have the same random vectors."""
        _, units = np.unique(self.unit_of, return_index=True)
        return self.slots[0, units]

    def by_unit(self, values: np.ndarray) -> np.ndarray:
        """The numbers of a condition's texts as means of units: `[units]`, or `[slots, units]` of random vectors."""
        return by_unit(values, self.unit_of * len(self.seeds))

    def pair(self, metric: str, treatment: str, control: str = UNSTEERED) -> Pair:
        """One comparison.

        Raises:
            DataError: one that was not made.
        """
        for pair in self.pairs:
            if (pair.metric, pair.treatment, pair.control) == (metric, treatment, control):
                return pair
        made = ", ".join(dict.fromkeys(f"{pair.treatment} against {pair.control}" for pair in self.pairs))
        raise DataError(
            f"{treatment!r} was not compared with {control!r} in {metric!r}; the metrics are "
            f"{', '.join(self.metrics)}, the comparisons {made}."
        )

    def summary(self) -> str:
        """What was shown and what was not, a sentence for each comparison.

        A difference is called one only where the p-value after Holm's correction is below 1 - level, the interval
        excludes 0, and there are prompts and random vectors enough to carry that. One to the unsteered model is
        qualified by what random vectors of the same length do: an effect is what stands against both.
        """
        return "\n".join(sentences(self.pairs, self.units))

    def records(self) -> list[dict[str, Any]]:
        """One record for every text: condition, draw of a random vector, seed, prompt, text, and its metrics."""
        found = []
        for condition, texts in self.texts.items():
            for i, text in enumerate(texts):
                of_slot, p = divmod(i, len(self.prompts))
                slot, s = divmod(of_slot, len(self.seeds))
                prompt = self.prompts[p]
                row = {
                    "condition": condition,
                    "draw": int(self.slots[slot, p]) if condition.startswith(RANDOM) else 0,
                    "seed": self.seeds[s],
                    "prompt": prompt if isinstance(prompt, str) else json.dumps(list(prompt)),
                    "text": text,
                }
                numbers = {name: float(of[condition][i]) for name, of in self.values.items() if condition in of}
                found.append(row | numbers)
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
        document = {
            "about": self.about,
            "means": self.means,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "summary": self.summary().splitlines(),
            "records": self.records(),
        }
        return self._written(as_json(document), path)

    def to_markdown(self, path: Any = None) -> str:
        """Tables and summary as markdown; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        said = "\n".join(f"- {escaped(line)}" for line in self.summary().splitlines())
        parts = [f"# {TITLE}", escaped(self._head()), as_markdown(self._means()), said, as_markdown(self._tests())]
        return self._written("\n\n".join(parts) + "\n", path)

    def to_html(self, path: Any = None) -> str:
        """Tables and summary as one self-contained HTML page; also into a file, where `path` names one.

        Raises:
            FileError: the file cannot be written.
        """
        return self._written(page(TITLE, self._body()), path)

    def _repr_html_(self) -> str:
        return part(self._body())

    def __str__(self) -> str:
        return "\n\n".join([self._head(), as_text(self._means()), self.summary()])

    def __repr__(self) -> str:
        return (
            f"VectorComparison({len(self.vectors)} vectors, {len(self.prompts)} prompts, metrics {list(self.metrics)})"
        )

    def _head(self) -> str:
        units, groups = len(set(self.unit_of)), self.about.get("groups")
        what = "groups" if groups else "different ones"
        repeated = "" if units == len(self.prompts) else f" ({units} {what}, which are what counts)"
        seeds = f" x {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        return f"{len(self.conditions)} conditions x {len(self.prompts)} prompts{repeated}{seeds}: means with intervals"

    def _means(self) -> tuple[list[str], list[list[str]]]:
        return means_table(self.means, self.conditions, self.units, len(set(self.unit_of)))

    def _tests(self) -> tuple[list[str], list[list[str]]]:
        return pairs_table(self.pairs, self.units)

    def _body(self) -> str:
        (means, rows), (tests, lines) = self._means(), self._tests()
        said = "\n".join(f"<li>{html.escape(line)}</li>" for line in self.summary().splitlines())
        return "\n".join(
            [
                f"<h1>{TITLE}</h1>",
                f"<p>{html.escape(self._head())}</p>",
                table(means, rows, numeric=range(1, len(means))),
                "<h2>What was shown</h2>",
                f"<ul>\n{said}\n</ul>",
                "<h2>Every comparison</h2>",
                table(tests, lines, numeric=range(2, len(tests) - 1)),
            ]
        )

    def _written(self, text: str, path: Any) -> str:
        if path is not None:
            write_text(path, text, "The comparison")
        return text
