"""What a sweep found: a table of numbers by configuration and prompt."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from steerfn._dataframe import dataframe
from steerfn._errors import DataError
from steerfn._records import as_json, write_text
from steerfn._text import Text
from steerfn._visible import visible_line
from steerfn.discover.search._held_out import held_out as hold_out
from steerfn.sweeping._configs import Config


@dataclasses.dataclass(frozen=True)
class Best:
    """The best configuration of a sweep, and what it is worth on prompts that did not choose it.

    Attributes:
        config: the configuration.
        metric: by which it was chosen.
        chosen: its mean on the prompts that chose it: the best of many, so too good.
        reported: its mean on the other prompts; None where no prompt was held out.
        error: the standard error of `reported`; None for fewer than two prompts.
        baseline: the unsteered model's mean on those prompts; None where alpha 0 is not in the sweep.
        n: how many prompts chose, and how many report; those without a number do neither.
    """

    config: Config
    metric: str
    chosen: float
    reported: float | None
    error: float | None
    baseline: float | None
    n: tuple[int, int]

    def __str__(self) -> str:
        text = f"{self.config}: {self.metric} {self.chosen:.4g} on the {self.n[0]} prompts that chose it"
        if self.reported is None:
            return text + "; no prompt was held out"
        spread = "" if self.error is None else f" +- {self.error:.2g}"
        base = "" if self.baseline is None else f" (unsteered {self.baseline:.4g})"
        return text + f", {self.reported:.4g}{spread} on {self.n[1]} others{base}"


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """The outcome of a sweep; see `sweep`. Print it to see the means.

    Attributes:
        configs: the configurations.
        prompts: the prompts as given.
        values: by metric, its value for every configuration and prompt, `[configs, prompts]`.
        texts: of a sweep of generations, the text for every configuration and prompt; else None.
        continuations: of a sweep of scores, what was scored after each prompt; else None.
        log_probs: of a sweep of scores, for every prompt the log-probabilities `[configs, continuations]`; else None.
        about: what was run: options, versions, hashes.
    """

    configs: tuple[Config, ...]
    prompts: tuple[Text, ...]
    values: Mapping[str, np.ndarray]
    texts: tuple[tuple[str, ...], ...] | None = None
    continuations: tuple[tuple[str, ...], ...] | None = None
    log_probs: tuple[np.ndarray, ...] | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.configs)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of its metrics, the first being the one that `best` goes by."""
        return tuple(self.values)

    def mean(self, metric: str | None = None) -> dict[Config, float]:
        """The mean of a metric over the prompts (by default of the first metric) for every configuration.

        Prompts whose text has no number, such as the repetition of a single word, are left out.

        Raises:
            DataError: a metric that it does not have.
        """
        return dict(zip(self.configs, _means(self._values(metric)).tolist(), strict=True))

    def best(self, metric: str | None = None, *, lowest: bool = False, held_out: float = 0.5, seed: int = 0) -> Best:
        """The configuration with the highest mean on some prompts, with its mean on the others.

        Prompts that are the same but for case and white space stay on one side. Ties go to the weaker alpha.

        Args:
            metric: by default the first.
            lowest: the lowest mean instead.
            held_out: the part of the prompts that do not choose; 0 lets all choose, and reports nothing.
            seed: another seed holds out other prompts.

        Raises:
            DataError: a metric that it does not have, a part outside 0 to 1, or a metric that is no number anywhere.
        """
        if isinstance(held_out, bool) or not isinstance(held_out, (int, float)) or not 0 <= held_out < 1:
            raise DataError(f"held_out is a part of the prompts, from 0 to below 1, not {held_out!r}.")
        name, values = metric or self.metrics[0], self._values(metric)
        kept = np.array(hold_out(self.prompts, held_out, seed)) if held_out else np.zeros(len(self.prompts), bool)
        sign = -1 if lowest else 1
        means = np.where(np.isfinite(m := sign * _means(values[:, ~kept])), m, -np.inf)
        if not np.isfinite(means).any():
            raise DataError(f"The metric {name!r} is no finite number in any configuration, so none is the best.")
        top = max(range(len(self)), key=lambda c: (means[c], -abs(self.configs[c].alpha)))
        chose, others = (row[~np.isnan(row)] for row in (values[top, ~kept], values[top, kept]))
        n = len(chose), len(others)
        plain = next((c for c, config in enumerate(self.configs) if config.alpha == 0), None)
        return Best(
            self.configs[top],
            name,
            float(chose.mean()),
            float(others.mean()) if n[1] else None,
            float(others.std(ddof=1) / math.sqrt(n[1])) if n[1] > 1 else None,
            float(_means(values[plain, kept])) if plain is not None and n[1] else None,
            n,
        )

    def _values(self, metric: str | None) -> np.ndarray:
        name = self.metrics[0] if metric is None else metric
        if name not in self.values:
            raise DataError(f"This sweep has no metric {name!r}; it has {', '.join(map(repr, self.metrics))}.")
        return self.values[name]

    def records(self) -> list[dict[str, Any]]:
        """One record for every configuration and prompt: what was run, the text or the scores, and the metrics."""
        found = []
        for c, config in enumerate(self.configs):
            for p, prompt in enumerate(self.prompts):
                row: dict[str, Any] = {
                    "vector": config.vector,
                    "sites": "+".join(config.sites),
                    "alpha": config.alpha,
                    "prompt": prompt if isinstance(prompt, str) else json.dumps(list(prompt)),
                }
                if self.texts is not None:
                    row["text"] = self.texts[c][p]
                if self.log_probs is not None:
                    row["log_probs"] = self.log_probs[p][c].tolist()
                found.append(row | {name: float(values[c, p]) for name, values in self.values.items()})
        return found

    def to_pandas(self) -> Any:
        """The records as a pandas DataFrame.

        Raises:
            DataError: pandas is not installed.
        """
        return dataframe(self.records())

    def to_json(self, path: Any = None) -> str:
        """The records as JSON, with what is needed to repeat the sweep; also into a file, where `path` names one."""
        continuations = None if self.continuations is None else list(map(list, self.continuations))
        document = {"about": dict(self.about), "continuations": continuations, "records": self.records()}
        text = as_json(document)
        if path is not None:
            write_text(path, text, "The table")
        return text

    def __str__(self) -> str:
        parts = [self._grid(name, _means(values)) for name, values in self.values.items()]
        head = f"{len(self.configs)} configurations x {len(self.prompts)} prompts"
        return "\n\n".join([head, *parts])

    def _grid(self, name: str, means: np.ndarray) -> str:
        """The means of a metric: vectors and sites down, strengths across."""
        alphas = list(dict.fromkeys(config.alpha for config in self.configs))
        rows = list(dict.fromkeys((config.vector, config.sites) for config in self.configs))
        labels = [
            visible_line(f"{vector}  {sites[0] if len(sites) == 1 else f'{len(sites)} sites'}")
            for vector, sites in rows
        ]
        wide = max(map(len, [*labels, name]))
        lines = [f"{name:<{wide}}" + "".join(f"{f'{alpha:+g}' if alpha else '0':>10}" for alpha in alphas)]
        found = dict(zip(self.configs, means, strict=True))
        for label, (vector, sites) in zip(labels, rows, strict=True):
            cells = (found[Config(vector, sites, alpha)] for alpha in alphas)
            lines.append(f"{label:<{wide}}" + "".join(f"{cell:>10.4g}" for cell in cells))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Sweep({len(self.configs)} configurations, {len(self.prompts)} prompts, metrics {list(self.metrics)})"


def _means(values: np.ndarray) -> np.ndarray:
    """Means over prompts, the last axis, of those that have a number; NaN where none has."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(-1) / known.sum(-1)
