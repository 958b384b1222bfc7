"""The result of a comparison of vectors: means by condition, tested pairs, sentences, and the texts behind them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerfn.evaluate._pairs import RANDOM, UNSTEERED, Pair
from steerfn.evaluate._sentences import sentences
from steerfn.evaluate._statistics import Estimate, by_unit
from steerfn.evaluate._tables import describe_prompts, means_table, pairs_table
from steerfn.metrics import Metric
from steerfn.output import Bullets, Paragraph, Result, Section, Table
from steerfn.run import Text, prompt_field
from steerfn.values import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class VectorComparison(Result):
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

    _title = "Comparison of steering vectors"
    _what = "The comparison"

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
        comparisons = ", ".join(dict.fromkeys(f"{pair.treatment} against {pair.control}" for pair in self.pairs))
        raise DataError(
            f"{treatment!r} was not compared with {control!r} in {metric!r}; the metrics are "
            f"{', '.join(self.metrics)}, the comparisons {comparisons}."
        )

    def summary(self) -> str:
        """The significant and non-significant differences, in one sentence for each comparison.

        A difference is called one only where the p-value after Holm's correction is below 1 - level, the interval
        excludes 0, and there are prompts and random vectors enough to carry that. One to the unsteered model is
        qualified by what random vectors of the same length do: an effect is what stands against both.
        """
        return "\n".join(sentences(self.pairs, self.units))

    def to_records(self) -> list[dict[str, Any]]:
        """One record for every text: condition, draw of a random vector, seed, prompt, text, and its metrics."""
        records = []
        for condition, texts in self.texts.items():
            for i, text in enumerate(texts):
                of_slot, p = divmod(i, len(self.prompts))
                slot, s = divmod(of_slot, len(self.seeds))
                prompt = self.prompts[p]
                row = {
                    "condition": condition,
                    "draw": int(self.slots[slot, p]) if condition.startswith(RANDOM) else 0,
                    "seed": self.seeds[s],
                    "prompt": prompt_field(prompt),
                    "text": text,
                }
                numbers = {name: float(of[condition][i]) for name, of in self.values.items() if condition in of}
                records.append(row | numbers)
        return records

    records = to_records  # the older spelling

    def _facts(self) -> dict[str, Any]:
        pairs = [pair.to_dict() for pair in self.pairs]
        return {"about": self.about, "means": self.means, "pairs": pairs, "summary": self.summary().splitlines()}

    def _sections(self) -> Sequence[Section]:
        return [*self._print_sections(), pairs_table(self.pairs, self.units, "Every comparison")]

    def _print_sections(self) -> Sequence[Section]:
        headers, rows = means_table(self.means, self.conditions, self.units, len(set(self.unit_of)))
        means = Table(headers, rows, numeric=range(1, len(headers)))
        return [Paragraph(self._head()), means, Bullets(self.summary().splitlines())]

    def __repr__(self) -> str:
        return (
            f"VectorComparison({len(self.vectors)} vectors, {len(self.prompts)} prompts, metrics {list(self.metrics)})"
        )

    def _head(self) -> str:
        groups = bool(self.about.get("groups"))
        texts = describe_prompts(len(self.prompts), self.unit_of, groups, len(self.seeds))
        return f"{len(self.conditions)} conditions x {texts}: means with intervals"
