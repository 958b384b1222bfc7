"""What the plots of a sweep share: its numbers by prompt, the unsteered model among them, and their unit."""

import re
from typing import Any

import numpy as np

from steerfn import metrics
from steerfn._errors import DataError, SteerError
from steerfn._site import Site
from steerfn.evaluate import by_prompt
from steerfn.sweeping._common import common
from steerfn.sweeping._table import Sweep

SCORED = {
    "propensity": "log-odds, nats",
    "share": "probability",
    "accuracy": "fraction",
    "log_prob": "nats",
    "mass": "probability",
}
"""The units of the metrics of a sweep of scores."""


def checked(table: Any, metric: str | None, plot: str) -> str:
    """The metric to plot: the one named, or the first.

    Raises:
        SteerError: not a sweep.
        DataError: a metric that the sweep does not have.
    """
    if not isinstance(table, Sweep):
        raise SteerError(
            f"plot.{plot} takes a Sweep, not a {type(table).__name__}; make one with "
            "sf.sweep(model, tokenizer, prompts, v, alphas)."
        )
    table.mean(metric)  # which knows what it does not have
    return table.metrics[0] if metric is None else metric


def label_of(table: Sweep, metric: str) -> str:
    """A metric's name and unit."""
    if table.texts is None:
        unit = SCORED.get(metric, "")
    else:
        plain = metric.partition("(")[0]  # without options
        unit = metrics.get(plain).unit if plain in metrics.names() else ""
    return f"{metric} ({unit})" if unit else metric


def numbers_of(table: Sweep, metric: str) -> np.ndarray:
    """A metric by configuration and different prompt, `[configs, prompts]`; NaN where there is none."""
    return np.stack([by_prompt(row, table.prompts) for row in table.values[metric]])


def comparable(numbers: np.ndarray) -> np.ndarray:
    """The numbers that may be compared, `[configs, prompts]`: NaN where a mean were one of survivors; see `common`."""
    rows, shared = common(numbers)
    return np.where(rows[:, None] & shared, numbers, np.nan)


def unsteered(table: Sweep, numbers: np.ndarray) -> np.ndarray | None:
    """The unsteered model's numbers by prompt, where they are in the sweep.

    Strength 0 is the unsteered model for `add` and most operators. Where configurations of strength 0 differ it is not,
    as for `clamp`.
    """
    plain = [row for config, row in zip(table.configs, numbers, strict=True) if config.alpha == 0]
    same = bool(plain) and all(np.array_equal(row, plain[0], equal_nan=True) for row in plain)
    return plain[0] if same and np.isfinite(plain[0]).any() else None


def place(sites: tuple[str, ...]) -> str:
    """The sites of a configuration in a word."""
    return sites[0] if len(sites) == 1 else f"{len(sites)} sites"


def depth(sites: tuple[str, ...]) -> tuple[int, int, int]:
    """Sorts the sites of configurations by the depth of the first."""
    first = Site.parse(sites[0])
    return (*first.order, -1 if first.head is None else first.head)


def layer_labels(sites: list[tuple[str, ...]]) -> tuple[list[str], str]:
    """A label for each row of sites, and one for all: only the layers' numbers where nothing else differs."""
    alone = [re.fullmatch(r"(\w+)\[(\d+)\]", each[0]) for each in sites if len(each) == 1]
    kinds = {found.group(1) for found in alone if found}
    if len(alone) == len(sites) and all(alone) and len(kinds) == 1:
        return [found.group(2) for found in alone if found], f"Layer ({kinds.pop()}, block index from 0)"
    return [place(each) for each in sites], "Site"


def finite_mean(row: np.ndarray) -> float:
    """The mean of the numbers that are there, NaN where none is."""
    known = row[np.isfinite(row)]
    return float(known.mean()) if len(known) else float("nan")


def nothing_to_draw(metric: str) -> DataError:
    """The error for a metric without any number."""
    return DataError(f"The metric {metric!r} is no finite number in any configuration, so there is nothing to draw.")
