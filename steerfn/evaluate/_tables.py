"""The tables of comparisons: means of metrics, effects, and pairs of conditions with their tests."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from steerfn.evaluate._pairs import Pair
from steerfn.evaluate._statistics import Estimate
from steerfn.metrics import Metric
from steerfn.output import Table, format_number, format_signed, percent, quantity


def effects_table(
    means: Mapping[str, tuple[Estimate | None, Estimate]],
    effects: Mapping[str, Pair],
    metrics: Mapping[str, Metric],
    *,
    units_apart: bool,
) -> Table:
    """A row for every metric: the mean before and after, and the change with its interval and test.

    Units stand apart in a terminal, where a narrow one does without; beside the metrics a page has more room.
    """
    level = next((percent(after.level) for _, after in means.values()), "")
    headers = ["metric", "unit", "better", "unsteered", "steered", f"change ({level} CI)"]
    headers += ["in percent", "p (Holm)", "d_z", "n"]
    rows = []
    for name, (before, after) in means.items():
        metric, pair = metrics[name], effects.get(name)
        estimate, change = (pair.difference.estimate, pair.percent) if pair else (None, None)
        rows.append(
            [
                name,
                metric.unit or "-",
                metric.better or "-",
                "-" if before is None else format_number(before.mean),
                format_number(after.mean) if pair else _with_interval(after),
                _with_interval(estimate, format_signed),
                f"{format_signed(change.mean)} %" if change else "-",
                p_cell(pair.adjusted) if pair else "-",
                format_number(pair.difference.effect) if pair else "-",
                str(pair.n if pair else after.n),
            ]
        )
    if not units_apart:
        headers = [headers[0], *headers[2:]]
        rows = [[name if unit == "-" else f"{name} [{unit}]", *others] for name, unit, *others in rows]
    spare = [i for i, header in enumerate(headers) if header in ("unit", "better", "in percent", "d_z", "n")]
    return Table(headers, rows, numeric=range(2 + units_apart, len(headers)), spare=spare)


def _with_interval(estimate: Estimate | None, show: Callable[[float], str] = format_number) -> str:
    if estimate is None or not estimate.n:
        return "-"
    ends = f" ({show(estimate.low)} to {show(estimate.high)})" if estimate.n > 1 else ""
    return show(estimate.mean) + ends


def describe_prompts(count: int, unit_of: Iterable[Hashable], in_groups: bool, seeds: int) -> str:
    """How many prompts a comparison has, how many units they are where some belong together, and how many seeds."""
    units = len(set(unit_of))
    what = "groups" if in_groups else "different ones"
    repeated = "" if units == count else f" ({units} {what}, which are what counts)"
    return f"{quantity(count, 'prompt')}{repeated}" + (f" x {seeds} seeds" if seeds > 1 else "")


def means_table(
    means: Mapping[str, Mapping[str, Estimate]], conditions: Sequence[str], units: Mapping[str, str], n: int
) -> tuple[list[str], list[list[str]]]:
    """The mean of every metric with its interval, as headers and rows: conditions down, metrics across.

    Means of fewer than all `n` units say how many have a number: they may be those that survived the steering.
    """
    headers = ["condition", *(f"{name} [{units[name]}]" if units.get(name) else name for name in means)]
    return headers, [[each, *(_cell(of.get(each), n) for of in means.values())] for each in conditions]


def pairs_table(pairs: Sequence[Pair], units: Mapping[str, str], title: str) -> Table:
    """Every comparison with its test."""
    levels = {percent(pair.difference.estimate.level) for pair in pairs}
    headers = ["metric", "comparison", "difference", f"{', '.join(levels)} CI", "in percent"]
    headers += ["p", "p (Holm)", "d_z", "n", "verdict"]
    rows = []
    for pair in pairs:
        estimate, change, unit = pair.difference.estimate, pair.percent, units.get(pair.metric)
        rows.append(
            [
                f"{pair.metric} [{unit}]" if unit else pair.metric,
                f"{pair.treatment} - {pair.control}",
                format_number(estimate.mean),
                f"{format_number(estimate.low)} to {format_number(estimate.high)}",
                f"{format_number(change.mean)} % ({format_number(change.low)} to {format_number(change.high)})"
                if change
                else "-",
                p_cell(pair.p),
                p_cell(pair.adjusted),
                format_number(pair.difference.effect),
                str(pair.n),
                pair.verdict,
            ]
        )
    return Table(headers, rows, title, numeric=range(2, len(headers) - 1))


def p_cell(p: float) -> str:
    """A p-value in a table."""
    return "< 0.001" if p < 0.001 else format_number(p)


def _cell(estimate: Estimate | None, n: int) -> str:
    if estimate is None or not estimate.n:
        return "-"
    ends = "" if estimate.n < 2 else f"{format_number(estimate.low)} to {format_number(estimate.high)}"
    of = "" if estimate.n == n else f"{estimate.n} of {n}"
    inside = "; ".join(filter(None, (ends, of)))
    return format_number(estimate.mean) + (f" ({inside})" if inside else "")
