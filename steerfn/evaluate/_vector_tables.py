"""The two tables of a comparison of vectors, as cells of text: for terminals, markdown and HTML alike."""

from collections.abc import Mapping, Sequence

from steerfn.evaluate._pairs import Pair
from steerfn.evaluate._shown import percent, shown
from steerfn.evaluate._statistics import Estimate

Table = tuple[list[str], list[list[str]]]
"""Headers and rows."""


def means_table(
    means: Mapping[str, Mapping[str, Estimate]], conditions: Sequence[str], units: Mapping[str, str], n: int
) -> Table:
    """The mean of every metric with its interval: conditions down, metrics across.

    Means of fewer than all `n` units say how many have a number: they may be those that survived the steering.
    """
    headers = ["condition", *(f"{name} [{units[name]}]" if units.get(name) else name for name in means)]
    return headers, [[each, *(_cell(found.get(each), n) for found in means.values())] for each in conditions]


def pairs_table(pairs: Sequence[Pair], units: Mapping[str, str]) -> Table:
    """Every comparison with its test."""
    levels = {percent(pair.difference.estimate.level) for pair in pairs}
    headers = ["metric", "comparison", "difference", f"{', '.join(levels)} CI", "in percent"]
    headers += ["p", "p (Holm)", "d_z", "n", "verdict"]
    rows = []
    for pair in pairs:
        found, change, unit = pair.difference.estimate, pair.percent, units.get(pair.metric)
        rows.append(
            [
                f"{pair.metric} [{unit}]" if unit else pair.metric,
                f"{pair.treatment} - {pair.control}",
                shown(found.mean),
                f"{shown(found.low)} to {shown(found.high)}",
                f"{shown(change.mean)} % ({shown(change.low)} to {shown(change.high)})" if change else "-",
                p_cell(pair.p),
                p_cell(pair.adjusted),
                shown(pair.difference.effect),
                str(pair.n),
                pair.verdict,
            ]
        )
    return headers, rows


def as_text(table: Table) -> str:
    """A table for a terminal, in columns."""
    headers, rows = table
    wide = [max(len(line[i]) for line in [headers, *rows]) for i in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip()
        for line in [headers, *rows]
    )


def as_markdown(table: Table) -> str:
    """A table of GitHub's markdown."""
    headers, rows = table
    lines = [[escaped(cell) for cell in line] for line in [headers, *rows]]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([body[0], f"|{'---|' * len(headers)}", *body[1:]])


def escaped(text: str) -> str:
    """Text that markdown shows as it is, on one line."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def p_cell(p: float) -> str:
    """A p-value in a table."""
    return "< 0.001" if p < 0.001 else shown(p)


def _cell(found: Estimate | None, n: int) -> str:
    if found is None or not found.n:
        return "-"
    ends = "" if found.n < 2 else f"{shown(found.low)} to {shown(found.high)}"
    of = "" if found.n == n else f"{found.n} of {n}"
    inside = "; ".join(filter(None, (ends, of)))
    return f"{shown(found.mean)} ({inside})" if inside else shown(found.mean)
