"""The result of a sweep: a table of numbers by configuration and prompt."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from steerfn.datasets import held_out_sides
from steerfn.evaluate._common import common
from steerfn.evaluate._configs import Config
from steerfn.output import Paragraph, Record, Result, Section, Table
from steerfn.run import Text, prompt_field
from steerfn.values import DataError, Site, finite_number, number_groups

LOG_ODDS = (
    "Log-odds of given continuations and what is generated can part: look at texts at this strength (metrics= instead "
    "of continuations=)."
)
"""What a table of scores does not show."""


@dataclasses.dataclass(frozen=True)
class Best(Record):
    """The best configuration of a `sweep`, and what it is worth on prompts that did not choose it.

    Attributes:
        config: the configuration.
        metric: by which it was chosen.
        chosen: its mean on the prompts that chose it: the best of many, so too good.
        reported: its mean on the other prompts; None where no prompt was held out.
        error: the standard error of `reported`; None for fewer than two prompts.
        baseline: the unsteered model's mean on those prompts; None where alpha 0 is not in the sweep.
        n: how many prompts chose, and how many report: those that have a number under every configuration that could be
            chosen.
        notes: what to know of it, a sentence each: that it stands at the edge of what was tried, that prompts or
            configurations are left out, that log-odds are not texts.
    """

    config: Config
    metric: str
    chosen: float
    reported: float | None
    error: float | None
    baseline: float | None
    n: tuple[int, int]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([self._numbers(), *(f"  {note}" for note in self.notes)])

    def _numbers(self) -> str:
        text = f"{self.config}: {self.metric} {self.chosen:.4g} on the {self.n[0]} prompts that chose it"
        if self.reported is None:
            return text + "; no prompt was held out"
        spread = "" if self.error is None else f" +- {self.error:.2g}"
        base = "" if self.baseline is None else f" (unsteered {self.baseline:.4g})"
        return text + f", {self.reported:.4g}{spread} on {self.n[1]} others{base}"


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep(Result):
    """The outcome of a sweep; see `sweep`. Print it to see the means.

    Attributes:
        configs: the configurations.
        prompts: the prompts as given.
        values: by metric, its value for every configuration and prompt, `[configs, prompts]`. Of scores, with `l` the
            log-probabilities of the continuations and `t` the one that `correct` names: `propensity`
            `l_t - log sum_{c != t} exp l_c`, the log-odds of `t` (of two continuations their logit difference);
            `share` `exp l_t / sum_c exp l_c`, for answer letters CAA's p(match); `accuracy`, 1 where no other is as
            likely, else 0; `log_prob` `l_t`; `mass` `sum_c exp l_c`, how much of the model's probability the shares
            speak for. Where a prompt has one continuation, `log_prob` alone.
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

    _title = "Sweep"
    _what = "The table"

    def __len__(self) -> int:
        return len(self.configs)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of its metrics, the first being the one that `best` goes by."""
        return tuple(self.values)

    def counts(self, metric: str | None = None) -> dict[Config, int]:
        """How many prompts have a number of a metric (by default the first) under every configuration.

        Raises:
            DataError: a metric that it does not have.
        """
        return dict(zip(self.configs, np.isfinite(self._values(metric)).sum(1).tolist(), strict=True))

    def mean(self, metric: str | None = None) -> dict[Config, float]:
        """The mean of a metric (by default of the first) for every configuration, over the prompts that all share.

        A text may have no number, such as the repetition of a single word. A configuration that has numbers for fewer
        than four of five prompts has no mean (NaN); the means of the others are over the prompts that have a number
        under every one of them. Otherwise a strength that ruins most texts would be judged by those that survive.

        Raises:
            DataError: a metric that it does not have.
        """
        return dict(zip(self.configs, self._means(self._values(metric)).tolist(), strict=True))

    def best(
        self,
        metric: str | None = None,
        *,
        lowest: bool = False,
        held_out: float = 0.5,
        groups: Any = None,
        seed: int = 0,
    ) -> Best:
        """The configuration with the highest mean on some prompts, with its mean on the others.

        Only configurations that have numbers for four of five prompts can be chosen, and they are compared, and
        reported, on the prompts that have a number under every one of them. Prompts that are the same but for case and
        white space stay on one side. Ties go to the weaker alpha.

        Args:
            metric: by default the first.
            lowest: the lowest mean instead.
            held_out: the part of the prompts that do not choose; 0 lets all choose, and reports nothing.
            groups: a label for each prompt, where several belong together: a group chooses or reports, and is one unit
                of the standard error.
            seed: another seed holds out other prompts.

        Raises:
            DataError: a metric that it does not have, a part outside 0 to 1, or a metric that has numbers for too few
                prompts in every configuration.
        """
        held_out = finite_number("held_out", held_out, least=0, below=1)
        name, values = metric or self.metrics[0], self._values(metric)
        rows, shared = common(values)
        out = held_out_sides({"prompts": self.prompts}, held_out, seed, groups)["prompts"]
        kept = np.array(out) if held_out else np.zeros(len(self.prompts), bool)
        choosing, reporting = shared & ~kept, shared & kept
        if not choosing.any():
            known = int(np.isfinite(values).sum(1).max())
            raise DataError(
                f"The metric {name!r} is a finite number for too few prompts to choose by: of {len(self.prompts)}, at "
                f"most {known} under one configuration, and {int(shared.sum())} under all that have numbers for four "
                "of five. Use more prompts, weaker strengths, or another metric."
            )
        means = np.where(rows, (-1 if lowest else 1) * values[:, choosing].mean(1), -np.inf)
        top = max(range(len(self)), key=lambda c: (means[c], -abs(self.configs[c].alpha)))
        others, n = values[top, reporting], (int(choosing.sum()), int(reporting.sum()))
        plain = next((c for c, config in enumerate(self.configs) if config.alpha == 0 and rows[c]), None)
        units = others
        if groups is not None:
            which = np.array(number_groups(groups, len(self.prompts), "prompts"))[reporting]
            units = np.array([others[which == unit].mean() for unit in np.unique(which)])
        error = float(units.std(ddof=1) / math.sqrt(len(units))) if len(units) > 1 else 0.0
        return Best(
            self.configs[top],
            name,
            float(values[top, choosing].mean()),
            float(units.mean()) if n[1] else None,
            error or None,  # that a few prompts agree is no certainty
            float(values[plain, reporting].mean()) if plain is not None and n[1] else None,
            n,
            tuple(self._notes(self.configs[top], rows, shared)),
        )

    def _notes(self, best: Config, rows: np.ndarray, shared: np.ndarray) -> Iterator[str]:
        """Caveats about the best configuration."""
        alphas = [each.alpha for each in self.configs if (each.vector, each.sites) == (best.vector, best.sites)]
        if len(alphas) > 1 and best.alpha in (min(alphas), max(alphas)):
            end = "largest" if best.alpha == max(alphas) else "smallest"
            yield f"At the edge of the grid: alpha {best.alpha:g} is the {end} that was tried; beyond it may be better."
        sites = sorted({Site.parse(each.sites[0]) for each in self.configs if len(each.sites) == 1}, key=_depth)
        if len(best.sites) == 1 and len(sites) > 1 and best.sites[0] in (sites[0].name, sites[-1].name):
            end = "deepest" if best.sites[0] == sites[-1].name else "first"
            yield f"At the edge of the grid: {best.sites[0]} is the {end} site that was tried."
        if not rows.all():
            yield f"{int((~rows).sum())} of {len(rows)} configurations have numbers for too few prompts to be chosen."
        if not shared.all():
            missing = int((~shared).sum())
            yield f"{missing} of {len(shared)} prompts have no number under some configuration, and are left out."
        if self.log_probs is not None:
            yield LOG_ODDS

    def _means(self, values: np.ndarray) -> np.ndarray:
        rows, shared = common(values)
        return np.where(rows, values[:, shared].mean(1) if shared.any() else np.nan, np.nan)

    def _values(self, metric: str | None) -> np.ndarray:
        name = self.metrics[0] if metric is None else metric
        if name not in self.values:
            raise DataError(f"This sweep has no metric {name!r}; it has {', '.join(map(repr, self.metrics))}.")
        return self.values[name]

    def to_records(self) -> list[dict[str, Any]]:
        """One record for every configuration and prompt: what was run, the text or the scores, and the metrics."""
        records = []
        for c, config in enumerate(self.configs):
            for p, prompt in enumerate(self.prompts):
                row: dict[str, Any] = {
                    "vector": config.vector,
                    "sites": "+".join(config.sites),
                    "alpha": config.alpha,
                    "prompt": prompt_field(prompt),
                }
                if self.texts is not None:
                    row["text"] = self.texts[c][p]
                if self.log_probs is not None:
                    row["log_probs"] = self.log_probs[p][c].tolist()
                records.append(row | {name: float(values[c, p]) for name, values in self.values.items()})
        return records

    records = to_records  # the older spelling

    def _facts(self) -> dict[str, Any]:
        continuations = None if self.continuations is None else list(map(list, self.continuations))
        return {"about": dict(self.about), "continuations": continuations}

    def _sections(self) -> Sequence[Section]:
        head = f"{len(self.configs)} configurations x {len(self.prompts)} prompts"
        grids = [self._grid(name, values) for name, values in self.values.items()]
        return [Paragraph(head), *grids, *([Paragraph(LOG_ODDS)] if self.log_probs is not None else [])]

    def _grid(self, name: str, values: np.ndarray) -> Table:
        """The means of a metric: vectors and sites down, strengths across; counts where too few prompts have one."""
        alphas = list(dict.fromkeys(config.alpha for config in self.configs))
        rows = list(dict.fromkeys((config.vector, config.sites) for config in self.configs))
        (enough, shared), n = common(values), values.shape[1]
        cells = {
            config: f"{mean:.4g}" if fits else f"[{int(np.isfinite(row).sum())}/{n}]"
            for config, mean, fits, row in zip(self.configs, self._means(values), enough, values, strict=True)
        }
        headers = [name, *(f"{alpha:+g}" if alpha else "0" for alpha in alphas)]
        lines = [
            [
                f"{vector}  {sites[0] if len(sites) == 1 else f'{len(sites)} sites'}",
                *(cells[Config(vector, sites, each)] for each in alphas),
            ]
            for vector, sites in rows
        ]
        notes = []
        if enough.any() and not shared.all():
            notes.append(
                f"(means over the {int(shared.sum())} of {n} prompts that have a number in all of these cells)"
            )
        if not enough.all():
            notes.append("([a/n]: a of n prompts have a number, too few for a mean)")
        return Table(headers, lines, notes=notes, numeric=range(1, len(headers)))

    def __repr__(self) -> str:
        return f"Sweep({len(self.configs)} configurations, {len(self.prompts)} prompts, metrics {list(self.metrics)})"


def _depth(site: Site) -> tuple[Any, ...]:
    return (*site.order, -1 if site.head is None else site.head)
