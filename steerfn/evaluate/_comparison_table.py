"""The numbers of a comparison with and without steering, as cells of text."""

from collections.abc import Mapping

from steerfn.evaluate._pairs import Pair
from steerfn.evaluate._shown import percent, shown
from steerfn.evaluate._statistics import Estimate
from steerfn.evaluate._vector_tables import Table, p_cell
from steerfn.metrics._metric import Metric


def effects_table(
    means: Mapping[str, tuple[Estimate | None, Estimate]], effects: Mapping[str, Pair], metrics: Mapping[str, Metric]
) -> Table:
    """A row for every metric: the mean before and after, and the change with its interval and test."""
    level = next((percent(after.level) for _, after in means.values()), "")
    headers = ["metric", "better", "unsteered", "steered", f"change ({level} CI)", "in percent", "p (Holm)", "d_z", "n"]
    rows = []
    for name, (before, after) in means.items():
        metric, pair = metrics[name], effects.get(name)
        found, change = (pair.difference.estimate, pair.percent) if pair else (None, None)
        rows.append(
            [
                f"{name} [{metric.unit}]" if metric.unit else name,
                metric.better or "-",
                "-" if before is None else shown(before.mean),
                shown(after.mean) if pair else _with_interval(after),
                _with_interval(found, signed=True),
                f"{_signed(change.mean)} %" if change else "-",
                p_cell(pair.adjusted) if pair else "-",
                shown(pair.difference.effect) if pair else "-",
                str(pair.n if pair else after.n),
            ]
        )
    return headers, rows


def narrow(table: Table) -> Table:
    """The same with what a narrow terminal has room for."""
    headers, rows = table
    kept = [i for i, header in enumerate(headers) if header not in ("better", "in percent", "d_z", "n")]
    return [headers[i] for i in kept], [[row[i].partition(" [")[0] for i in kept] for row in rows]


def _with_interval(found: Estimate | None, signed: bool = False) -> str:
    if found is None or not found.n:
        return "-"
    show = _signed if signed else shown
    return show(found.mean) if found.n < 2 else f"{show(found.mean)} ({show(found.low)} to {show(found.high)})"


def _signed(value: float) -> str:
    text = shown(value)
    return f"+{text}" if value > 0 and text != "0" else text
